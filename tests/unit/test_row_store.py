import errno
import os
import re
import resource
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from udmlss import _row_store
from udmlss._row_store import RowBuffer, allocate_rows, map_rows, write_rows

MAPPINGS = Path("/proc/self/maps")
ROWS = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def write(path, parts, n=11, dtype="float32"):
    with write_rows(path, n, dtype) as append:
        for part in parts:
            append(part)


@pytest.fixture
def small_disk(monkeypatch):
    """Return a function that sets the largest size of a file: like a full disk, the system refuses more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_reads_the_file_for_any_size_of_the_parts(tmp_path, size, dtype):
    write(tmp_path / "rows.npy", ROWS.split(size), dtype=dtype)
    found = np.load(tmp_path / "rows.npy")
    assert found.dtype == dtype
    assert np.array_equal(found, ROWS.numpy().astype(dtype))
    assert names(tmp_path) == ["rows.npy"]


def test_rows_that_are_not_contiguous_are_written_in_order(tmp_path):
    write(tmp_path / "rows.npy", [ROWS.T.contiguous().T])
    assert np.array_equal(np.load(tmp_path / "rows.npy"), ROWS.numpy())


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_writing_to_mapped_rows_does_not_change_the_file(tmp_path, monkeypatch, platform):
    monkeypatch.setattr("sys.platform", platform)
    path = tmp_path / "rows.npy"
    write(path, [ROWS])
    mapped = map_rows(path)
    assert torch.equal(mapped, ROWS)
    mapped[3] = 7
    assert (mapped[3] == 7).all()
    assert torch.equal(map_rows(path), ROWS)
    assert np.array_equal(np.load(path), ROWS.numpy())


def test_maps_a_file_that_is_larger_than_memory(tmp_path):
    n = 2**38  # 1 TiB of zeros, which take no space on the disk
    with (tmp_path / "rows.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n // 64, 64)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * n)
    mapped = map_rows(tmp_path / "rows.npy")
    mapped[0] = 1
    assert mapped[[0, -1]].sum() == 64


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"previous content"])
def test_an_error_leaves_no_partial_file_and_keeps_the_previous_one(tmp_path, error, before):
    path = tmp_path / "rows.npy"
    if before is not None:
        path.write_bytes(before)

    def parts():
        yield ROWS[:4]
        assert len(list(tmp_path.glob("rows.npy.*.part"))) == 1
        raise error

    with pytest.raises(error):
        write(path, parts())
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before] * (before is not None)


def test_two_processes_that_write_to_one_path_leave_a_complete_file(tmp_path):
    path = tmp_path / "rows.npy"
    with write_rows(path, 11, "float32") as append:
        append(ROWS[:4])
        with write_rows(path, 11, "float32") as other:
            other(ROWS + 1)
        assert np.array_equal(np.load(path), ROWS.numpy() + 1)
        append(ROWS[4:])
    assert np.array_equal(np.load(path), ROWS.numpy())
    assert names(tmp_path) == ["rows.npy"]


def test_a_file_has_the_usual_permissions(tmp_path):
    write(tmp_path / "rows.npy", [ROWS])
    (tmp_path / "other").touch()
    assert (tmp_path / "rows.npy").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_rows_are_retained_if_the_file_cannot_be_replaced(tmp_path, monkeypatch):
    """Windows does not replace a file that is mapped."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "in use")

    path = tmp_path / "rows.npy"
    write(path, [ROWS + 1])
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        PermissionError, match=r"`out` must be a file that can be replaced, got .*rows\.npy, which"
    ) as caught:
        write(path, [ROWS])
    part, previous = sorted(tmp_path.iterdir(), key=lambda file: len(file.name), reverse=True)
    assert f"All rows are in {part}: delete the tensors" in str(caught.value)
    assert str(caught.value).endswith(f"and rename {part.name} to rows.npy.")
    assert np.array_equal(np.load(previous), ROWS.numpy() + 1)
    part.rename(path)
    assert np.array_equal(np.load(path), ROWS.numpy())


def test_another_error_of_replacing_leaves_no_partial_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="input/output error"):
        write(tmp_path / "rows.npy", [ROWS])
    assert not names(tmp_path)


@pytest.mark.parametrize("factor", [2.0**-14, 1.0, 65504.0])
def test_a_float16_file_holds_rows_in_its_range(tmp_path, factor):
    rows = ROWS / ROWS.abs().amax(dim=1, keepdim=True) * factor
    rows[3] = 0
    write(tmp_path / "rows.npy", [rows], dtype="float16")
    found = torch.from_numpy(np.load(tmp_path / "rows.npy")).float()
    torch.testing.assert_close(found, rows, rtol=1e-3, atol=1e-3 * factor)


@pytest.mark.parametrize(("factor", "number"), [(2.0**-15, "3.05e-05"), (1e5, "1e+05")])
def test_rejects_rows_out_of_the_range_of_float16(tmp_path, factor, number):
    rows = ROWS / ROWS.abs().amax(dim=1, keepdim=True)
    rows[7] *= factor
    message = rf'needs rows whose .* 6\.1e-05\.\.65504, got a row .* is {re.escape(number)}\. Pass `dtype="float32"`'
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "rows.npy", [rows], dtype="float16")
    write(tmp_path / "rows.npy", [rows])
    assert np.array_equal(np.load(tmp_path / "rows.npy"), rows.numpy())


def test_mapped_rows_are_unchanged_after_the_file_is_replaced(tmp_path):
    write(tmp_path / "rows.npy", [ROWS])
    first = map_rows(tmp_path / "rows.npy")
    write(tmp_path / "rows.npy", [ROWS + 1])
    assert torch.equal(first, ROWS)
    assert torch.equal(map_rows(tmp_path / "rows.npy"), ROWS + 1)


@pytest.mark.parametrize("size", [100, 300])  # inside the header and inside the rows
def test_an_error_of_the_disk_names_the_file(tmp_path, small_disk, size):
    small_disk(size)
    with pytest.raises(OSError, match="too large") as caught:
        write(tmp_path / "rows.npy", ROWS.split(2))
    assert caught.value.__notes__ == [f"while writing embeddings to {tmp_path / 'rows.npy'}"]
    assert not names(tmp_path)


def test_an_error_of_the_images_does_not_name_the_file(tmp_path):
    with pytest.raises(OSError, match="no such image") as caught, write_rows(tmp_path / "rows.npy", 11, "float32"):
        raise OSError("no such image")
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    ("name", "remedy", "use"),
    [
        (
            "out",
            "use another disk, or pass .* to `udmlss.embed`",
            lambda folder: write(folder / "rows.npy", ROWS.split(2)),
        ),
        ("embeddings_folder", "use a folder on another disk", lambda folder: allocate_rows(11, 5, folder)),
    ],
)
def test_rejects_a_disk_without_space_for_all_rows(tmp_path, monkeypatch, name, remedy, use):
    monkeypatch.setattr(_row_store, "disk_usage", lambda _: SimpleNamespace(free=219))
    message = rf"`{name}` needs 220 bytes of free disk space, got 219\. Free some space, {remedy}"
    with pytest.raises(ValueError, match=message):
        use(tmp_path)
    assert not names(tmp_path)
    monkeypatch.setattr(_row_store, "disk_usage", lambda _: SimpleNamespace(free=220))
    use(tmp_path)


def test_rejects_a_path_that_is_a_folder_before_any_work(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"An output file must not be a folder, got .*/folder"):
        write(tmp_path / "folder", iter(int, 1))


@pytest.mark.parametrize("on_disk", [False, True])
def test_rejects_rows_of_another_dimension(tmp_path, on_disk):
    message = r"Embeddings must have the same dimension, got 4 after 5\. Crop the images"
    parts = [ROWS, ROWS[:, :4]]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "rows.npy", parts) if on_disk else fill(RowBuffer(22, torch.empty), parts)
    assert not names(tmp_path)


def fill(buffer, parts):
    for part in parts:
        buffer.append(part)
    return buffer.rows


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_buffer_holds_its_rows_in_order(tmp_path, size, on_disk):
    allocate = partial(allocate_rows, folder=tmp_path if on_disk else None)
    assert torch.equal(fill(RowBuffer(11, allocate), ROWS.split(size)), ROWS)
    assert not names(tmp_path)


def disk_space_of_a_file(size, folder):
    """Reserve a file and return the number of bytes that it takes on the disk."""
    with (folder / "rows").open("w+b") as file:
        _row_store._reserve(file.fileno(), size)
        assert os.fstat(file.fileno()).st_size == size
        return os.fstat(file.fileno()).st_blocks * 512  # the unit of st_blocks is 512 bytes on every file system


def test_disk_space_is_reserved_in_advance(tmp_path):
    assert disk_space_of_a_file(2**20, tmp_path) >= 2**20


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_space_gets_the_size_of_the_file(tmp_path, monkeypatch, code):
    def not_supported(*_):
        raise OSError(code, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", not_supported)
    assert disk_space_of_a_file(2**20, tmp_path) == 0


@pytest.mark.skipif(not MAPPINGS.exists(), reason="the system does not list the mapped files of a process")
def test_disk_space_is_freed_with_the_tensor(tmp_path):
    rows = allocate_rows(11, 5, tmp_path)
    assert rows.shape == (11, 5)
    assert str(tmp_path) in MAPPINGS.read_text()
    del rows
    assert str(tmp_path) not in MAPPINGS.read_text()


def test_no_rows_are_an_empty_tensor(tmp_path):
    assert allocate_rows(0, 5, tmp_path).shape == (0, 5)


def test_an_error_of_the_disk_names_the_folder(tmp_path, small_disk):
    small_disk(219)
    with pytest.raises(OSError, match="too large") as caught:
        allocate_rows(11, 5, tmp_path)
    assert caught.value.__notes__ == [f"while writing embeddings to {tmp_path}"]
