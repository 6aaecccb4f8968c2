"""Files and folders that are replaced as a whole or not at all."""

import errno
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from udmlss import _files
from udmlss._files import lock_folder, output_file, replace_file, replace_folder

LIMITS = resource.getrlimit(resource.RLIMIT_FSIZE)


def write_file(path, text):
    with replace_file(path) as part:
        part.write_text(text)


def write_folder(path, text):
    with replace_folder(path) as part:
        (part / "inner").write_text(text)


def content(folder):
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail(*_):
    raise OSError("The disk is broken")


def interrupt(*_):
    raise KeyboardInterrupt


def fill_disk(*_):
    """Refuse larger files than 1,000 bytes, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, LIMITS[1]))


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda patch: patch.setattr(Path, "write_text", fail),
        lambda patch: patch.setattr(os, "fsync", fail),
        lambda patch: patch.setattr(os, "fsync", interrupt),
        lambda patch: refuse_new_names(patch, fail),
        lambda patch: refuse_new_names(patch, interrupt),
        fill_disk,
    ],
)
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, write, damage, before):
    if before is not None:
        write(tmp_path / "new" / "output", before)
    found = content(tmp_path)
    with monkeypatch.context() as patch:
        damage(patch)
        try:
            with pytest.raises((OSError, KeyboardInterrupt)):
                write(tmp_path / "new" / "output", "x" * 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, LIMITS)  # before pytest writes to its own output
    assert content(tmp_path) == found
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["output"] * (before is not None)


def refuse_new_names(patch, error):
    """Make it an error to give a complete file or folder its name."""
    for name in ("replace", "rename"):
        usual = getattr(Path, name)
        patch.setattr(Path, name, lambda path, to, usual=usual: (error if path.suffix == ".part" else usual)(path, to))


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_the_last_of_several_writers_wins(tmp_path, write):
    for text in ("old", "new"):
        write(tmp_path / "output", text)
    assert [*content(tmp_path).values()] == ["new"]
    with replace_file(tmp_path / "file") as part:
        write_file(tmp_path / "file", "other")
        assert (tmp_path / "file").read_text() == "other"
        part.write_text("own")
    assert (tmp_path / "file").read_text() == "own"


def test_a_folder_that_another_process_writes_at_the_same_moment_is_replaced(tmp_path, monkeypatch):
    usual, others = Path.rename, ["other"]

    def rename(path, to):
        if path.suffix == ".part" and others:
            write_folder(tmp_path / "output", others.pop())
        usual(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    write_folder(tmp_path / "output", "own")
    assert [*content(tmp_path).values()] == ["own"]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    write_folder(tmp_path / "photos", "1")
    with pytest.raises(ValueError, match=r"An output file must not be a folder, got .*photos\. Choose a file name"):
        write_file(tmp_path / "photos", "new")
    assert [*content(tmp_path).values()] == ["1"]


def test_the_target_of_a_link_is_replaced_and_the_link_is_retained(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/output")
    for text in ("old", "new"):
        write_file(tmp_path / "link", text)
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["output"]
    assert (tmp_path / "real" / "output").read_text() == "new"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"An output file must be a regular file, got .*pipe, which is a device or a"):
        write_file(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo()


def test_an_output_file_has_its_suffix_and_is_not_changed_by_the_check(tmp_path):
    write_file(tmp_path / "a.CSV", "old")
    assert output_file("out", tmp_path / "a.CSV", ".csv") == tmp_path / "a.CSV"
    assert output_file("out", str(tmp_path / "new" / "b.csv"), ".csv") == tmp_path / "new" / "b.csv"
    with pytest.raises(
        ValueError, match=r"`out` must be a file with the suffix \.csv, got .*c\.jpg\. Add the suffix\."
    ):
        output_file("out", tmp_path / "c.jpg", ".csv")
    with pytest.raises(OSError, match=r"a\.CSV"):
        output_file("out", tmp_path / "a.CSV" / "d.csv", ".csv")
    assert content(tmp_path) == {Path("a.CSV"): "old"}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (
            errno.EACCES,
            pytest.raises(ValueError, match=r"one run at a time, got .*, which another process uses"),
        ),
        (errno.ENOLCK, pytest.warns(UserWarning, match=r"cannot be locked: .*\. Only one run at a time")),
    ],
)
def test_folders_are_locked_on_windows_too(tmp_path, monkeypatch, number, expected):
    """`tests/unit/cli/test_run_folder.py` tests the lock of this system with a second process."""
    calls = []
    monkeypatch.setattr(_files, "fcntl", None)
    windows = SimpleNamespace(LK_NBLCK=2, locking=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with lock_folder(tmp_path) as file:
        assert calls == [(file.fileno(), 2, 1)]

    def refuse(*_):
        raise OSError(number, "refused")

    windows.locking = refuse
    with expected:
        lock_folder(tmp_path).close()
