import json
import re
import sys

import command
import pytest


def test_command_is_trained_on_half_of_the_classes_and_scored_on_the_others(flowers, tmp_path, monkeypatch, capfd):
    options = ["--data", flowers.name, "--root", str(flowers.parent), "--out", str(tmp_path)]
    options += ["--", "--epochs", "0.5", "--image-size", "32", "--workers", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["command.py", *options])
    command.main()
    run = json.loads((tmp_path / "flowers.json").read_text())
    assert (run["images"], run["classes"]) == (24, 4)
    assert all(0 < run["scores"][name][0] <= 1 for name in command.SCORED)
    assert run["options"] == options[options.index("--") + 1 :]
    text = (tmp_path / "table.md").read_text()
    assert re.search(r"\| flowers \| 24 \| \d+\.\d \| \d+ / 4" + 3 * r" \| [\d.]+, [\d.]+" + r" \|\n", text)
    assert f"on {run['versions']['threads']} threads" in text
    assert re.search(r"python benchmarks/command.py --data flowers --out \S+ -- --epochs 0.5 --image-size 32", text)
    monkeypatch.setattr(command, "measure", None)  # a run that exists is not repeated
    command.main()
    monkeypatch.setattr(sys, "argv", ["command.py", *options, "--seed", "1"])
    with pytest.raises(SystemExit):
        command.main()
    assert "flowers.json has --epochs 0.5" in capfd.readouterr().err
