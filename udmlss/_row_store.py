"""Rows to memory or to a file as they come, and the file as a tensor that memory need not hold."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from shutil import disk_usage
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from udmlss._checks import value_error

RowType = Literal["float32", "float16"]


class RowBuffer:
    """Rows that come part by part, n in all, in one tensor from the first on: to join them would take as much again.

    Attributes:
        rows: The rows so far, and room for the others.
    """

    def __init__(self, n: int, folder: Path | None = None) -> None:
        self.n, self.folder = n, folder
        self.rows = torch.empty(0)
        self._filled = 0

    def append(self, rows: Float[Tensor, "b d"]) -> None:
        """Take the next rows.

        Raises:
            ValueError: They are longer or shorter than those before.
        """
        if not self._filled:
            self.rows = allocate_rows(self.n, rows.shape[1], self.folder)
        _check_dimension(rows, self.rows.shape[1])
        self.rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)


def allocate_rows(n: int, d: int, folder: Path | None) -> Float[Tensor, "n d"]:
    """Return a tensor to fill: in memory, or in a file without a name in the folder.

    Such a file is gone with the tensor, and with the process however that ends.
    """
    if folder is None or n == 0:  # no file can be mapped that holds nothing
        return torch.empty(n, d)
    size = n * d * np.dtype(np.float32).itemsize
    free = disk_usage(folder).free
    if size > free:
        remedy = "Make room, or name a folder on another disk"
        raise value_error(f"`embeddings_folder` needs {size:,} bytes of free disk", f"{free:,}", remedy)
    with _naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(n, d)))


def _reserve(file: int, size: int) -> None:
    """Give a file its length and, where the system can, its place on the disk: a full one would end the process."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # what file systems that cannot do it answer
                raise


@contextmanager
def write_rows(path: Path, n: int, dtype: RowType) -> Iterator[Callable[[Tensor], None]]:
    """Give a function that appends rows to a .npy file, which has n of them after the block.

    They go to a file beside it, with ".part" after its name, that takes its place once it is whole; after an error
    there is no such file, and the other is as it was.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise value_error(
            "`out` must name a file in a folder that is there", path, "Make the folder, or name a file in it"
        )
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb", buffering=0) as file:
            yield _Rows(file, path, n, dtype).append
            with _naming(path):
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _Rows:
    """An open .npy file of so many rows; the first ones say how long a row is."""

    def __init__(self, file: FileIO, path: Path, n: int, dtype: RowType) -> None:
        self.file, self.path, self.n, self.dtype = file, path, n, np.dtype(dtype)
        self.d = 0

    def append(self, rows: Float[Tensor, "b d"]) -> None:
        if not self.d:
            self._begin(rows.shape[1])
        _check_dimension(rows, self.d)
        rest = np.ascontiguousarray(rows.numpy(), dtype=self.dtype).data.cast("B")
        with _naming(self.path):
            while rest:  # a nearly full disk takes a part before it refuses
                rest = rest[self.file.write(rest) :]

    def _begin(self, d: int) -> None:
        self.d = d
        size, free = self.n * d * self.dtype.itemsize, disk_usage(self.path.parent).free
        if size > free:
            remedy = 'Make room, name a file on another disk, or take half with `dtype="float16"`'
            raise value_error(f"`out` needs {size:,} bytes of free disk", f"{free:,}", remedy)
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.n, d)}
        with _naming(self.path):
            npy.write_array_header_1_0(self.file, header)


def _check_dimension(rows: Tensor, d: int) -> None:
    if rows.shape[1] != d:
        raise value_error(
            "Embeddings must have one dimension", f"{rows.shape[1]} after {d}", "Crop the images to one size"
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add to an error of the disk which file it is about."""
    try:
        yield
    except OSError as error:
        error.add_note(f"while writing embeddings to {path}")
        raise


def map_rows(path: Path) -> Float[Tensor, "n d"]:
    """Return the array in a .npy file as a tensor whose parts are read when they are used."""
    return torch.from_numpy(np.load(path, mmap_mode="r+"))  # "r" makes torch warn, "c" may not exceed memory
