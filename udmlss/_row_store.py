"""Rows of embeddings that are written to memory or to a file, and files that are read as tensors."""

import errno
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from udmlss._checks import value_error
from udmlss._chunks import CPU, storage_device
from udmlss._files import output_target, temporary_file

RowType = Literal["float32", "float16"]
Allocate = Callable[[int, int], Tensor]  # numbers of rows and columns to a tensor
_SMALLEST, _LARGEST = float(np.finfo(np.float16).smallest_normal), float(np.finfo(np.float16).max)
_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the constant only from 3.13 on


class RowBuffer:
    """A tensor of n rows that is filled batch by batch, without a second copy of the rows.

    Attributes:
        rows: The tensor, which is allocated with the first batch.
    """

    def __init__(self, n: int, allocate: Allocate) -> None:
        self.rows = torch.empty(0)
        self._n, self._allocate = n, allocate
        self._n_filled = 0

    def append(self, rows: Float[Tensor, "b d"]) -> None:
        """Append the next rows.

        Raises:
            ValueError: Their dimension differs from that of the previous rows, or they are out of the range of float16.
        """
        if not self._n_filled:
            self.rows = self._allocate(self._n, rows.shape[1])
        if rows.shape[1] != self.rows.shape[1]:
            found, remedy = f"{rows.shape[1]} after {self.rows.shape[1]}", "Crop the images to one size"
            raise value_error("Embeddings must have the same dimension", found, remedy)
        if self.rows.dtype == torch.float16:
            _check_range(rows)
        self.rows[self._n_filled : self._n_filled + len(rows)] = rows
        self._n_filled += len(rows)


def allocate_rows(n: int, d: int, folder: Path | None, device: torch.device = CPU) -> Float[Tensor, "n d"]:
    """Return an uninitialized tensor on a device or, with a folder, in an unnamed file in it.

    Without a folder the tensor is on the `storage_device`: in memory if it exceeds its fraction of the device's memory.
    The operating system deletes the file when the tensor is freed or the process ends.

    Raises:
        ValueError: The disk has less free space than the rows need.
    """
    if folder is None or n * d == 0:  # An empty file cannot be mapped
        return torch.empty(n, d, device=storage_device((n, d), device))
    _check_disk_space("embeddings_folder", folder, (n, d), np.dtype(np.float32), "use a folder on another disk")
    with _note_path(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return _map_new_rows(file, (n, d), np.dtype(np.float32))


@contextmanager
def write_rows(path: Path, n: int, dtype: RowType) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function that appends rows to a new .npy file, which has n of them after the block.

    The rows are written to a temporary file, which replaces `path` after the block. Its name is `path` with a random
    part and the suffix ".part", so that another process can write to the same path: the file is that of the process
    that ends last. If the block raises an error, the temporary file is deleted and `path` is unchanged. If `path`
    cannot be replaced, the temporary file is retained. Missing folders are created.

    Raises:
        ValueError: The path is a folder, a device or a pipe, the disk has less free space than needed, or a row is out
            of the range of float16.
        PermissionError: `path` cannot be replaced.
        OSError: Writing failed.
    """
    path = output_target(path)
    with temporary_file(path) as part:
        with part.open("x+b", buffering=0) as file:
            buffer = RowBuffer(n, lambda n, d: _map_new_npy(file, path, (n, d), np.dtype(dtype)))
            yield buffer.append
            with _note_path(path):
                os.fsync(file.fileno())
        buffer.rows = torch.empty(0)  # Windows does not rename a file that is mapped
    _replace(part, path)


def map_rows(path: Path) -> Float[Tensor, "n d"]:
    """Return the array in a .npy file as a tensor whose rows are read when they are used.

    Writing to the tensor does not change the file.
    """
    if sys.platform != "linux":
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    # Linux refuses a copy-on-write mapping that is larger than memory unless the mapping reserves no memory
    array = np.load(path, mmap_mode="r")
    with path.open("rb") as file:
        flags, prot = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=prot)
    return torch.from_numpy(np.ndarray(array.shape, array.dtype, mapped, array.offset))


def _replace(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except PermissionError as error:
        raise PermissionError(
            f"`out` must be a file that can be replaced, got {path}, which is in use or read-only: {error}. All rows "
            f"are in {part}: delete the tensors that were read from {path.name}, and rename {part.name} to {path.name}."
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _check_range(rows: Float[Tensor, "b d"]) -> None:
    """Raise ValueError if the largest number of a row overflows in float16, or loses decimals because it is small."""
    largest = rows.abs().amax(dim=1)
    outside = (largest > _LARGEST) | ((largest < _SMALLEST) & (largest > 0))
    if outside.any():
        found = f"a row whose largest number is {float(largest[outside][0]):.3g}"
        rule = f'`dtype="float16"` needs rows whose largest number lies in {_SMALLEST:.2g}..{_LARGEST:.0f}'
        raise value_error(rule, found, 'Pass `dtype="float32"`, or normalize the output')


def _map_new_npy(file: BinaryIO, path: Path, shape: tuple[int, int], dtype: np.dtype) -> Tensor:
    """Write the header of a .npy file and return its rows as a tensor that writes to the file."""
    remedy = 'use another disk, or pass `dtype="float16"` to `udmlss.embed`'
    _check_disk_space("out", path.parent, shape, dtype, remedy)
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with _note_path(path):
        npy.write_array_header_1_0(file, header)
        return _map_new_rows(file, shape, dtype)


def _map_new_rows(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype) -> Tensor:
    """Extend a file from its current position by rows, and return them as a tensor that writes to the file."""
    start = file.tell()
    _reserve(file.fileno(), start + shape[0] * shape[1] * dtype.itemsize)
    return torch.from_numpy(np.memmap(file, dtype, "r+", start, shape))


def _reserve(file: int, size: int) -> None:
    """Set the size of a file and reserve its disk space, since writing to a mapped file on a full disk is fatal."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # The file system does not support it
                raise


def _check_disk_space(name: str, folder: Path, shape: tuple[int, int], dtype: np.dtype, remedy: str) -> None:
    size, free = shape[0] * shape[1] * dtype.itemsize, disk_usage(folder).free
    if size > free:
        rule = f"`{name}` needs {size:,} bytes of free disk space"
        raise value_error(rule, f"{free:,}", f"Free some space, {remedy}")


@contextmanager
def _note_path(path: Path) -> Iterator[None]:
    """Add the path to an OSError of the `with` block."""
    try:
        yield
    except OSError as error:
        error.add_note(f"while writing embeddings to {path}")
        raise
