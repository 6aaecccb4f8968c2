import sys

import memory
import numpy as np
import pytest


def test_embeddings_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROWS_PER_PART", 64)
    memory.write_clusters(tmp_path / "rows.npy", 150, 8, 5)
    rows = np.load(tmp_path / "rows.npy")
    assert rows.shape == (150, 8)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-3)


def test_program_prints_time_and_memory_and_removes_its_file(tmp_path, monkeypatch, capfd):
    options = "--rows 2000 --dimensions 8 --clusters 5 --rounds 2 --folder"
    monkeypatch.setattr(sys, "argv", ["memory.py", *options.split(), str(tmp_path)])
    memory.main()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "2,000 x 8 float32, a file of 0.00 GiB"
    assert [line.split(" s (")[0].rstrip("0123456789. ") for line in lines[2:]] == [
        "after imports",
        "after round 0, 5 clusters",
        "after round 1, 5 clusters",
    ]
    assert all(line.endswith("GiB anonymous") for line in lines[2:])
    assert not list(tmp_path.iterdir())


def test_the_search_for_neighbors_prints_time_memory_and_recall(tmp_path, monkeypatch, capfd):
    def run_here(command, check):
        assert check
        monkeypatch.setattr(sys, "argv", command[1:])
        memory.main()

    options = "--rows 2000 --dimensions 8 --neighbors 5 --folder"
    monkeypatch.setattr(sys, "argv", ["memory.py", *options.split(), str(tmp_path)])
    monkeypatch.setattr(memory.subprocess, "run", run_here)  # the test above starts the process
    memory.main()
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1].startswith("after lists of 5, recall 1.000")
    assert lines[-1].endswith("GiB anonymous")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_training_prints_time_and_memory_after_each_round(tmp_path, monkeypatch, capfd, where):
    options = f"--rows 300 --dimensions 8 --clusters 20 --rounds 2 --fit {where} --folder"
    monkeypatch.setattr(sys, "argv", ["memory.py", *options.split(), str(tmp_path)])
    memory.main()
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["after imports", "after round 0", "after round 1"]
    assert not list(tmp_path.iterdir())
