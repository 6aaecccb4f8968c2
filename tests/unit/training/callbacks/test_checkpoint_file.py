"""Checkpoint files: atomic, verified, limited in number."""

import multiprocessing
import subprocess
import time
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from udmlss.training.callbacks.checkpoint_file import (
    FORMAT,
    checkpoints,
    clear_unfinished,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    to_plain,
)


def save(folder, *steps):
    return [save_checkpoint(folder, step, {"weights": torch.arange(5) + step}, keep_last=9) for step in steps]


def test_loads_what_was_saved(tmp_path):
    [path] = save(tmp_path, 3)
    assert newest_checkpoint(tmp_path) == path
    found = read_checkpoint(path)
    assert found["format"] == FORMAT
    assert torch.equal(found["weights"], torch.arange(5) + 3)


def test_the_checksum_is_that_of_sha256sum(tmp_path):
    [path] = save(tmp_path, 3)
    subprocess.run(["sha256sum", "--check", "--strict", path.name + ".sha256"], cwd=tmp_path, check=True)  # noqa: S603, S607


def test_any_changed_byte_is_noticed(tmp_path):
    good, path = save(tmp_path, 3, 4)
    content = path.read_bytes()
    checksum = path.with_name(path.name + ".sha256").read_bytes()
    for position in range(0, len(content), 7):  # a step that is prime to the alignment of the file
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        path.with_name(path.name + ".sha256").write_bytes(checksum)
        with pytest.warns(UserWarning, match="step-000000004.pt does not match its checksum and was renamed"):
            assert newest_checkpoint(tmp_path) == good


@pytest.mark.parametrize("content", [b"", b"0", b"\xff"])
def test_a_changed_or_missing_checksum_is_noticed(content, tmp_path):
    good, path = save(tmp_path, 3, 4)
    path.with_name(path.name + ".sha256").write_bytes(content)
    with pytest.warns(UserWarning, match="renamed to step-000000004.pt.damaged"):
        assert newest_checkpoint(tmp_path) == good
    assert checkpoints(tmp_path) == [good]


def test_rejects_a_checkpoint_of_another_format(tmp_path, monkeypatch):
    monkeypatch.setattr("udmlss.training.callbacks.checkpoint_file.FORMAT", 99)
    save(tmp_path, 3)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"A checkpoint must have format {FORMAT}, got 99 in .*step-000000003.pt"):
        newest_checkpoint(tmp_path)


def test_numpy_becomes_plain_and_state_dicts_stay_as_they_are():
    state = nn.BatchNorm1d(2).state_dict()
    assert to_plain({"model": state})["model"] is state
    assert hasattr(state, "_metadata")
    found = to_plain(OrderedDict(lr=np.float64(0.5), rows=[(np.arange(2), None)]))
    assert found == {"lr": 0.5, "rows": [(found["rows"][0][0], None)]}
    assert type(found["lr"]) is float
    assert torch.equal(found["rows"][0][0], torch.arange(2))


def save_until_killed(folder, first):
    state = {"weights": torch.rand(50_000)}
    for step in range(first, first + 10**6):
        save_checkpoint(folder, step, state, keep_last=1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, with threads
def test_a_killed_process_leaves_an_undamaged_checkpoint(tmp_path):
    processes = multiprocessing.get_context("fork")
    random, newest = np.random.default_rng(0), 0
    warnings.simplefilter("error")  # a damaged file would give a warning
    for _ in range(15):
        child = processes.Process(target=save_until_killed, args=(tmp_path, newest + 1))
        child.start()
        end = time.monotonic() + 60
        while newest_step(tmp_path) == newest and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        child.kill()
        child.join()
        clear_unfinished(tmp_path)
        assert newest_checkpoint(tmp_path) is not None
        assert newest_step(tmp_path) > newest
        assert len(list(tmp_path.iterdir())) <= 4  # the newest two and their checksums
        newest = newest_step(tmp_path)


def newest_step(folder):
    return max((int(path.stem.removeprefix("step-")) for path in checkpoints(folder)), default=0)
