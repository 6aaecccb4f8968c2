import re

import pytest
from speed_measurements import CLOCK_VARIABLE


def test_a_table_of_loading_is_saved_with_its_command(tmp_path, monkeypatch, capsys, flowers):
    pytest.importorskip("efficientnet_lite_pytorch")
    import speed_loading  # noqa: PLC0415 (after the check)

    monkeypatch.setenv(CLOCK_VARIABLE, "wall")
    monkeypatch.setattr(speed_loading.torch, "set_num_threads", lambda _number: None)  # other tests use several
    speed_loading.main(["--quick", "--photos", str(flowers), "--out", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    expected = ["test", "test", "train"] * 2 + ["workers", "path list"]
    assert [line[0].removeprefix("| ") for line in lines] == expected
    assert all(float(line[3].split()[0]) > 0 for line in lines)
    notes = [line[6] for line in lines if line[1] == "`ImageFiles`"]
    levels = [re.match(r"levels ([\d.]+) and (\d+),", note).groups() for note in notes]
    assert len(levels) == 2
    assert all(float(mean) < 0.1 and int(highest) <= 1 for mean, highest in levels)
    assert "`python benchmarks/speed_loading.py --quick" in table
    assert table in capsys.readouterr().out
