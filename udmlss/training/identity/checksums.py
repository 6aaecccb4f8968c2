"""Checksums of what a dataset holds for its items, such as their files and the order of these."""

import os
import zlib
from collections.abc import Sequence
from itertools import islice
from math import ceil, prod
from numbers import Real
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

_DEPTH = 4  # of objects that are attributes of objects, such as the dataset of a `Subset`
_MAX_PARTS = 100  # of a list or dictionary that does not hold one entry per item: a list of datasets is short
_MAX_NUMBERS = 2**28  # that are read of an array or tensor: 1 GiB in float32
_NUMBERS_AT_ONCE = 2**22
_LEAVES = (str, bytes, Real, type, FunctionType, ModuleType, type(None))


def order_checksums(name: str, images: object) -> dict[str, str]:
    """Return those of `checksums` that state the order of a `Subset`, or of a dataset of the package `datasets`."""
    search = _Search(suffixes=(".indices", "._indices"))
    search.visit(name, images, _length(images, 0))
    return search.found


def checksums(name: str, images: object) -> dict[str, str]:
    """Return a checksum of every list, array and tensor that a dataset holds with one entry per item.

    The attributes of the dataset are searched, their attributes, and so on. No item is loaded. The common beginning of
    the texts of a list does not count, so that the same files in another folder have the same checksum.

    Args:
        name: Name of the dataset.
        images: A map-style dataset.

    Returns:
        Checksums by name, such as "images.paths". Lists of entries of other types than texts, numbers, arrays and
        tensors have none.

    Example:
        >>> one, other = checksums("images", ["/a/1.png", "/a/2.png"]), checksums("images", ["/b/1.png", "/b/2.png"])
        >>> one == other
        True
    """
    search = _Search()
    search.visit(name, images, _length(images, 0))
    return search.found


def checksum(rows: Shaped[Tensor, "n ..."] | NDArray[Any]) -> str:
    """Return the checksum of a tensor or an array. Of more than 2**28 numbers, evenly spaced ones of each row count."""
    per_row = prod(rows.shape[1:])
    stride = ceil(max(1, len(rows) * per_row) / _MAX_NUMBERS)
    value, step = 0, max(1, _NUMBERS_AT_ONCE // max(1, per_row))
    for start in range(0, len(rows) if per_row else 0, step):
        part = rows[start : start + step]
        part = part.reshape(len(part), per_row)[:, ::stride]
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().view(torch.uint8).numpy()
        value = zlib.crc32(np.ascontiguousarray(part).data, value)
    return f"{value:08x}"


def has_numbers(entry: object) -> bool:
    """Return whether an object is a tensor or an array of which `checksum` reads the numbers."""
    if isinstance(entry, Tensor):
        return entry.layout == torch.strided and not (entry.is_quantized or entry.is_meta or entry.is_complex())
    return isinstance(entry, np.ndarray) and entry.dtype.kind in "biuf"


class _Search:
    """A search of an object for parts with one entry per item.

    Args:
        suffixes: Ends of the names of the parts that are read.

    Attributes:
        found: Checksums of the parts by name.
    """

    def __init__(self, suffixes: tuple[str, ...] = ("",)) -> None:
        self.found: dict[str, str] = {}
        self._suffixes = suffixes
        self._visited: set[int] = set()

    def visit(self, name: str, each: Any, n: int, depth: int = _DEPTH) -> None:  # noqa: ANN401 (an object of any type)
        """Add the checksums of the parts of an object that have n entries."""
        if isinstance(each, _LEAVES) or id(each) in self._visited:
            return
        self._visited.add(id(each))
        entries = _entries(each)
        if n and entries is not None and len(entries) == n:
            if name.endswith(self._suffixes):
                _add(name, entries, self.found)
        elif isinstance(each, list | tuple):
            for number, part in enumerate(each[:_MAX_PARTS]):
                self.visit(f"{name}[{number}]", part, n, depth)
        elif isinstance(each, dict):
            for key, part in islice(each.items(), _MAX_PARTS):
                self.visit(f"{name}[{key!r}]", part, n, depth)
        elif depth and hasattr(each, "__dict__"):
            n = _length(each, n)
            for attribute, part in sorted(vars(each).items()):
                self.visit(f"{name}.{attribute}", part, n, depth - 1)


def _add(name: str, entries: Sequence[Any] | Tensor | NDArray[Any], found: dict[str, str]) -> None:
    """Add the checksum of one entry per item, or one for each column if the entries are rows."""
    if isinstance(entries, Tensor | np.ndarray):
        found[name] = checksum(entries)
        return
    first = entries[0]
    if isinstance(first, list | tuple):
        if all(isinstance(row, list | tuple) and len(row) == len(first) for row in entries):
            for number, column in enumerate(zip(*entries, strict=True)):
                _add(f"{name}[:][{number}]", column, found)
    elif isinstance(first, dict):
        if all(isinstance(row, dict) and row.keys() == first.keys() for row in entries):
            for key in first:
                _add(f"{name}[:][{key!r}]", [row[key] for row in entries], found)
    elif (text := _text(entries)) is not None:
        found[name] = f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def _text(entries: Sequence[Any]) -> str | None:
    """Return entries of one type as a text, or None for other types. A cache that is not full yet holds two types."""
    if all(isinstance(entry, str | os.PathLike) for entry in entries):
        texts = list(map(str, entries))
        start = len(os.path.commonprefix(texts))  # noqa: RUF071 (any common beginning may be left out)
        return "\n".join(text[start:] for text in texts)
    if all(isinstance(entry, Real) for entry in entries):
        return " ".join(map(str, entries))
    if all(isinstance(entry, bytes) for entry in entries):
        return " ".join(f"{zlib.crc32(entry):08x}" for entry in entries)
    if all(has_numbers(entry) for entry in entries):
        return " ".join(f"{tuple(entry.shape)} {checksum(entry.reshape(-1))}" for entry in entries)
    return None


def _entries(each: Any) -> Sequence[Any] | Tensor | NDArray[Any] | None:  # noqa: ANN401 (an attribute of any type)
    """Return an object as a list, array or tensor, or None if it is something else."""
    if isinstance(each, Tensor | np.ndarray):
        return each if has_numbers(each) and each.ndim else _entries(each.tolist()) if _has_texts(each) else None
    if getattr(each, "column_names", None) == ["indices"]:  # a table of Arrow, the order of a dataset of `datasets`
        return _entries(each.column("indices").to_numpy())
    if hasattr(each, "to_numpy"):  # a table, such as that of pandas
        return _entries(np.asarray(each.to_numpy()))
    if isinstance(each, list | tuple | range):
        return each
    if isinstance(each, Sequence) and len(each) and isinstance(each[0], str | os.PathLike):
        return list(each)
    return None


def _has_texts(entry: Tensor | NDArray[Any]) -> bool:
    return isinstance(entry, np.ndarray) and entry.dtype.kind in "OU" and entry.ndim > 0


def _length(each: object, otherwise: int) -> int:
    """Return the length of a map-style dataset, or another number for an object that is not one."""
    try:
        return len(each)  # type: ignore[arg-type] # an object without a length raises TypeError
    except Exception:  # noqa: BLE001 (an attribute may be an object whose length cannot be computed)
        return otherwise
