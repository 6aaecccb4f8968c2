import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from udmlss._row_store import RowBuffer, allocate_rows, map_rows, write_rows

MAPPINGS = Path("/proc/self/maps")
ROWS = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def write(path, parts, n=11, dtype="float32"):
    with write_rows(path, n, dtype) as append:
        for part in parts:
            append(part)


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_reads_the_file_whatever_the_parts_were(tmp_path, size, dtype):
    write(tmp_path / "rows.npy", ROWS.split(size), dtype=dtype)
    found = np.load(tmp_path / "rows.npy")
    assert found.dtype == dtype
    assert np.array_equal(found, ROWS.numpy().astype(dtype))
    assert names(tmp_path) == ["rows.npy"]


def test_columns_apart_in_memory_are_written_in_order(tmp_path):
    write(tmp_path / "rows.npy", [ROWS.T.contiguous().T])
    assert np.array_equal(np.load(tmp_path / "rows.npy"), ROWS.numpy())


def test_a_mapped_file_is_its_rows_and_changes_with_them(tmp_path):
    write(tmp_path / "rows.npy", [ROWS])
    mapped = map_rows(tmp_path / "rows.npy")
    assert torch.equal(mapped, ROWS)
    mapped[3] = 7
    assert (np.load(tmp_path / "rows.npy")[3] == 7).all()


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    n = 2**38  # 1 TiB, but the disk need not hold the holes
    with (tmp_path / "rows.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n // 64, 64)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * n)
    assert float(map_rows(tmp_path / "rows.npy")[-1].sum()) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"as it was"])
def test_after_an_error_no_half_a_file_is_left_and_an_older_one_is_as_it_was(tmp_path, error, before):
    path = tmp_path / "rows.npy"
    if before is not None:
        path.write_bytes(before)

    def parts():
        yield ROWS[:4]
        assert names(tmp_path) == ["rows.npy"] * (before is not None) + ["rows.npy.part"]
        raise error

    with pytest.raises(error):
        write(path, parts())
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before] * (before is not None)


def test_what_was_mapped_from_a_file_stays_when_another_takes_its_place(tmp_path):
    write(tmp_path / "rows.npy", [ROWS])
    first = map_rows(tmp_path / "rows.npy")
    write(tmp_path / "rows.npy", [ROWS + 1])
    assert torch.equal(first, ROWS)
    assert torch.equal(map_rows(tmp_path / "rows.npy"), ROWS + 1)


def test_a_disk_that_takes_no_more_is_an_error_that_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))  # like a full disk: it takes a part, then refuses
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write(tmp_path / "rows.npy", ROWS.split(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.__notes__ == [f"while writing embeddings to {tmp_path / 'rows.npy'}"]
    assert not names(tmp_path)


def test_an_error_of_the_images_does_not_blame_the_file(tmp_path):
    with pytest.raises(OSError, match="no such picture") as caught, write_rows(tmp_path / "rows.npy", 11, "float32"):
        raise OSError("no such picture")
    assert not hasattr(caught.value, "__notes__")


def test_a_disk_without_room_for_all_rows_is_refused_at_the_first_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "disk_usage", lambda _: SimpleNamespace(free=219))
    with pytest.raises(ValueError, match=r"`out` needs 220 bytes of free disk, got 219\. Make room, name a file on"):
        write(tmp_path / "rows.npy", ROWS.split(2))
    monkeypatch.setattr(storing, "disk_usage", lambda _: SimpleNamespace(free=220))
    write(tmp_path / "rows.npy", ROWS.split(2))


@pytest.mark.parametrize("name", ["folder", "nowhere/rows.npy"])
def test_a_place_where_no_file_can_be_is_refused_before_any_work(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"`out` must name a file in a folder that is there, got .*/" + name):
        write(tmp_path / name, iter(int, 1))


def test_rows_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Embeddings must have one dimension, got 4 after 5\. Crop the images"):
        write(tmp_path / "rows.npy", [ROWS, ROWS[:, :4]])
    assert not names(tmp_path)


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_are_held_as_they_came(tmp_path, size, on_disk):
    held = RowBuffer(11, tmp_path if on_disk else None)
    for part in ROWS.split(size):
        held.append(part)
    assert torch.equal(held.rows, ROWS)
    assert not names(tmp_path)


def test_room_on_a_disk_is_taken_at_once(tmp_path):
    assert taken_by_a_file_of(2**20, tmp_path) >= 2**20


@pytest.mark.parametrize("answer", [errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_file_system_cannot_give_room_at_once_the_file_still_has_its_length(tmp_path, monkeypatch, answer):
    def cannot(*_):
        raise OSError(answer, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    assert taken_by_a_file_of(2**20, tmp_path) == 0


def taken_by_a_file_of(size, folder):
    """Return the bytes that the file takes on the disk."""
    with (folder / "rows").open("w+b") as file:
        storing._reserve(file.fileno(), size)
        assert os.fstat(file.fileno()).st_size == size
        return os.fstat(file.fileno()).st_blocks * 512  # st_blocks counts in 512 bytes whatever the disk's own are


@pytest.mark.skipif(not MAPPINGS.exists(), reason="the system does not list what a process maps")
def test_room_on_a_disk_is_given_back_with_the_tensor(tmp_path):
    room = allocate_rows(11, 5, tmp_path)
    assert room.shape == (11, 5)
    assert str(tmp_path) in MAPPINGS.read_text()
    del room
    assert str(tmp_path) not in MAPPINGS.read_text()


def test_room_for_nothing_is_an_empty_tensor(tmp_path):
    assert allocate_rows(0, 5, tmp_path).shape == (0, 5)


def test_a_disk_without_room_for_a_round_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "disk_usage", lambda _: SimpleNamespace(free=219))
    with pytest.raises(ValueError, match=r"`embeddings_folder` needs 220 bytes of free disk, got 219\. Make room"):
        allocate_rows(11, 5, tmp_path)
    monkeypatch.setattr(storing, "disk_usage", lambda _: SimpleNamespace(free=220))
    assert allocate_rows(11, 5, tmp_path).shape == (11, 5)


def test_a_disk_that_fills_up_meanwhile_is_an_error_that_names_the_folder(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (219, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            allocate_rows(11, 5, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.__notes__ == [f"while writing embeddings to {tmp_path}"]
