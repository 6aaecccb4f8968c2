"""Embeddings and ids as an index stores them."""

import os
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from numpy.typing import NDArray
from torch import Tensor

from udmlss._checks import as_rows, check_embeddings, type_error, value_error
from udmlss._chunks import row_slices
from udmlss.neighbors.search import unit_length

Embeddings = Float[Tensor, "_ _"] | NDArray[Any]
Ids = Shaped[Tensor, "_"] | NDArray[Any] | Sequence[str] | Sequence[int] | Sequence[os.PathLike[str]]


def as_unit_rows(embeddings: Embeddings, name: str = "embeddings", d: int | None = None) -> Float32[Tensor, "n d"]:
    """Return embeddings at unit length on the CPU, as a copy.

    Args:
        embeddings: The embeddings.
        name: Name of the parameter.
        d: Dimension of the items of the index. None does not check it.

    Raises:
        TypeError: They are neither a floating-point tensor nor an array of NumPy.
        ValueError: They are not 2-D, are empty, are not finite, or do not have `d` dimensions.
    """
    embeddings = as_rows(embeddings, name)
    check_embeddings(embeddings, name)
    if d is not None and embeddings.shape[1] != d:
        rule = f"`{name}` must have {d} dimensions, as the items of the index"
        raise value_error(rule, embeddings.shape[1], "Embed them with the model that embedded the items")
    rows = torch.empty(embeddings.shape)
    for part in row_slices(embeddings):
        rows[part] = unit_length(embeddings[part].detach())
    return rows


def as_ids(ids: Ids, n: int | None = None) -> NDArray[Any]:
    """Return ids as an array of int64 or of strings; paths become strings.

    Args:
        ids: The ids.
        n: Required number of ids. None does not check it.

    Raises:
        TypeError: The ids are not a sequence, or are neither all integers nor all strings or paths.
        ValueError: The ids are not one-dimensional, are not `n`, or one occurs twice or is out of the range of int64.
    """
    found = _as_array(ids)
    if found.ndim != 1 or (n is not None and len(found) != n):
        rule = "`ids` must be one-dimensional" if n is None else f"`ids` must have {n} elements, one per embedding"
        raise value_error(rule, f"shape {found.shape}", "Pass one id per embedding, in order")
    values, counts = np.unique(found, return_counts=True)
    if len(values) < len(found):
        twice = values[counts.argmax()].item()
        raise value_error("`ids` must be unique", f"{twice!r} {counts.max()} times", "Give each item an id of its own")
    return found


def check_same_type(ids: NDArray[Any], existing: NDArray[Any]) -> None:
    """Raise TypeError unless ids are of the type of the existing ids."""
    if len(ids) and ids.dtype.kind != existing.dtype.kind:
        kinds = {"i": "integers", "U": "strings"}
        rule = f"`ids` must be {kinds[existing.dtype.kind]}, as the existing ids"
        raise type_error(rule, kinds[ids.dtype.kind], "Convert them")


def _as_array(ids: Ids) -> NDArray[Any]:
    if isinstance(ids, Tensor | np.ndarray):
        found = ids.numpy(force=True) if isinstance(ids, Tensor) else ids
        if found.dtype.kind in "iu":
            return _as_int64(found)
        if found.dtype.kind == "U":
            return found.copy()
        raise type_error("`ids` must be integers or strings", f"an array of {found.dtype}", "Convert them")
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise type_error("`ids` must be a sequence", type(ids).__name__, "Pass a list, also for a single id")
    elements = list(ids)
    if elements and all(isinstance(each, Integral) and not isinstance(each, bool) for each in elements):
        return _as_int64(np.array(elements, dtype=object))
    paths = [os.fspath(each) for each in elements if isinstance(each, str | os.PathLike)]
    if len(paths) == len(elements):
        return np.array(paths, dtype=np.str_)
    kinds = ", ".join(sorted({type(each).__name__ for each in elements}))
    raise type_error("`ids` must be all integers, or all strings or paths", f"elements of type {kinds}", "Convert them")


def _as_int64(ids: NDArray[Any]) -> NDArray[np.int64]:
    for value in (ids.min(), ids.max()) if ids.size else ():
        if not -(2**63) <= int(value) < 2**63:
            raise value_error("`ids` must lie in the range of int64", int(value), "Pass them as strings")
    return ids.astype(np.int64)
