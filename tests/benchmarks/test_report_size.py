import re
import sys

import report_size


def test_program_prints_the_time_and_the_size(monkeypatch, capsys):
    options = "--images 60 --dimensions 8 --clusters 3 --pixels 8"
    monkeypatch.setattr(sys, "argv", ["report_size.py", *options.split()])
    report_size.main()
    found = re.fullmatch(r"60 images: (\d+) s, ([\d.]+) MB\n", capsys.readouterr().out)
    assert float(found[2]) < 15
