"""A reader of MATLAB 5 files in pure Python, which raises ValueError for damaged files.

The compiled reader of SciPy accesses invalid memory for some damaged files, which ends the process.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ENCODINGS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15  # types of data elements
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)  # classes of arrays
_HEADER_SIZE = 128  # in bytes
_MAX_SIZE = 1 << 28  # of a decompressed variable, in bytes
_MAX_DEPTH = 8  # of nested arrays
_Element = tuple[int, memoryview]


def read_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a MATLAB 5 file.

    A structure array is a dictionary that contains a list for each field, a cell array is a list, a character array is
    a string, and a numeric array is a one-dimensional NumPy array in column-major order. Arrays of other classes, such
    as function handles, are None.

    Raises:
        ValueError: The file is damaged or is not a MATLAB 5 file.
        OSError: The file cannot be read.
    """
    data = memoryview(path.read_bytes())
    byte_order = {b"IM": "<", b"MI": ">"}.get(bytes(data[_HEADER_SIZE - 2 : _HEADER_SIZE]))
    if byte_order is None:
        raise ValueError("a file without the header of a MATLAB 5 file")
    try:
        elements = [_decompress(element, byte_order) for element in _elements(data[_HEADER_SIZE:], byte_order)]
        return dict(_read_array(element, byte_order) for element in elements)
    except zlib.error as error:
        raise ValueError(error) from error


def _elements(data: memoryview, byte_order: str) -> Iterator[_Element]:
    """Yield the type and the content of each data element."""
    start = 0
    while start < len(data):
        kind, size = struct.unpack(f"{byte_order}II", _slice(data, start, 8))
        if kind >> 16:  # a small element contains its size and up to 4 bytes in 8 bytes
            yield kind & 0xFFFF, _slice(data[: start + 8], start + 4, kind >> 16)
            start += 8
        else:
            yield kind, _slice(data, start + 8, size)
            start += 8 + size + (0 if kind == _COMPRESSED else -size % 8)


def _slice(data: memoryview, start: int, size: int) -> memoryview:
    if start + size > len(data):
        raise ValueError("a truncated element")
    return data[start : start + size]


def _decompress(element: _Element, byte_order: str) -> _Element:
    kind, content = element
    if kind != _COMPRESSED:
        return element
    decompressor = zlib.decompressobj()
    data = decompressor.decompress(content, _MAX_SIZE)
    if not decompressor.eof:
        raise ValueError("a truncated or too large variable")
    return _next(_elements(memoryview(data), byte_order))


def _next(elements: Iterator[_Element]) -> _Element:
    for element in elements:
        return element
    raise ValueError("an array without all its elements")


def _read_array(element: _Element, byte_order: str, depth: int = 0) -> tuple[str, Any]:
    """Return the name and the value of an array."""
    kind, content = element
    if kind != _MATRIX or depth > _MAX_DEPTH:
        raise ValueError(f"an element of type {kind} at depth {depth}")
    if not content:  # an empty array may have no elements
        return "", np.empty(0)
    elements = _elements(content, byte_order)
    array_class = next(iter(_read_numbers(_next(elements), byte_order).tolist()), 0) & 0xFF
    if array_class not in {_CELL, _STRUCT, _CHAR, *_NUMERIC}:
        return "", None
    shape = [int(size) for size in _read_numbers(_next(elements), byte_order)]
    name = _read_text(_next(elements), byte_order)
    if min(shape, default=-1) < 0:
        raise ValueError(f"an array of shape {shape}")
    return name, _read_value(array_class, prod(shape), elements, byte_order, depth)


def _read_value(array_class: int, n_items: int, elements: Iterator[_Element], byte_order: str, depth: int) -> object:
    if array_class == _CHAR:
        return _read_text(_next(elements), byte_order)
    if array_class in _NUMERIC:
        return _check_length(_read_numbers(_next(elements), byte_order), n_items)
    names = _read_field_names(elements, byte_order) if array_class == _STRUCT else [""]
    n_arrays = n_items * len(names)
    arrays = [_read_array(element, byte_order, depth + 1)[1] for element in islice(elements, n_arrays)]
    _check_length(arrays, n_arrays)
    fields = {field: arrays[number :: len(names)] for number, field in enumerate(names)}
    return fields if array_class == _STRUCT else arrays


def _read_field_names(elements: Iterator[_Element], byte_order: str) -> list[str]:
    [size] = _read_numbers(_next(elements), byte_order).tolist()
    names = bytes(_next(elements)[1])
    if size <= 0 or len(names) % size:
        raise ValueError(f"{len(names)} bytes of field names of {size} bytes")
    return [names[start : start + size].split(b"\0")[0].decode("latin1") for start in range(0, len(names), size)]


def _read_numbers(element: _Element, byte_order: str) -> NDArray[Any]:
    kind, content = element
    if kind not in _NUMBERS:
        raise ValueError(f"an element of type {kind} instead of numbers")
    return np.frombuffer(content, byte_order + _NUMBERS[kind])


def _read_text(element: _Element, byte_order: str) -> str:
    kind, content = element
    if kind not in _ENCODINGS:
        raise ValueError(f"an element of type {kind} instead of text")
    encoding = _ENCODINGS[kind]
    suffix = {"<": "-le", ">": "-be"}[byte_order] if encoding in {"utf-16", "utf-32"} else ""
    return bytes(content).decode(encoding + suffix)


def _check_length(items: Any, n_items: int) -> Any:  # noqa: ANN401 (an array or a list)
    if len(items) != n_items:
        raise ValueError(f"an array of {len(items)} instead of {n_items} items")
    return items
