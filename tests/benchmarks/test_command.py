import json
import re
import sys

import command


def test_command_is_trained_on_half_of_the_classes_and_scored_on_the_others(flowers, tmp_path, monkeypatch, capfd):
    options = ["--data", flowers.name, "--root", str(flowers.parent), "--out", str(tmp_path)]
    options += ["--", "--epochs", "0.5", "--image-size", "32", "--workers", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["command.py", *options])
    command.main()
    run = json.loads((tmp_path / "flowers.json").read_text())
    assert (run["images"], run["classes"]) == (24, 4)
    assert 0 < run["scores"]["before"][0] <= 1
    row = r"\| flowers \| 24 \| \d+\.\d \| \d+ / 4 \| [\d.]+, [\d.]+ \| [\d.]+, [\d.]+ \|"
    assert re.search(row, (tmp_path / "table.md").read_text())
    monkeypatch.setattr(command, "measure", None)  # a run that exists is not repeated
    command.main()
