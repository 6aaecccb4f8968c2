import sys

import memory
import numpy as np
import pytest


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blobs_are_written_part_by_part(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(memory, "PART", 64)
    memory.write_blobs(tmp_path / "blobs.npy", 150, 8, 5, dtype)
    blobs = np.load(tmp_path / "blobs.npy")
    assert blobs.shape == (150, 8)
    assert blobs.dtype == dtype
    assert np.allclose(np.linalg.norm(blobs.astype(float), axis=1), 1, atol=1e-3)


def test_the_program_prints_seconds_and_memory_and_leaves_no_file(tmp_path, monkeypatch, capfd):
    options = "--rows 2000 --dimensions 8 --clusters 5 --rounds 2 --judge --folder"
    monkeypatch.setattr(sys, "argv", ["memory.py", *options.split(), str(tmp_path)])
    memory.main()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "2,000 x 8 float32, a file of 0.00 GiB"
    assert [line.split(" s (")[0].rstrip("0123456789. ") for line in lines[2:]] == [
        "after imports",
        "after round 0, 5 clusters",
        "after round 1, 5 clusters",
        "after judging",
    ]
    assert all(line.endswith("in memory alone") for line in lines[2:])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_training_prints_memory_after_each_round_and_leaves_no_file(tmp_path, monkeypatch, capfd, where):
    options = f"--rows 300 --dimensions 8 --clusters 20 --rounds 2 --fit {where} --folder"
    monkeypatch.setattr(sys, "argv", ["memory.py", *options.split(), str(tmp_path)])
    memory.main()
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["after imports", "after round 0", "after round 1"]
    assert not list(tmp_path.iterdir())
