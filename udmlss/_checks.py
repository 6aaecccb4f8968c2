"""Checks of arguments, with errors that state the rule, what was found and the remedy."""

from importlib import import_module
from math import isfinite
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from udmlss._chunks import ColumnRange, row_slices

_TORCH_TYPES = (np.float16, np.float32, np.float64)


def value_error(rule: str, found: object, remedy: str) -> ValueError:
    """Return a ValueError for the caller to raise: "rule, got found. remedy."."""
    return ValueError(_message(rule, found, remedy))


def type_error(rule: str, found: object, remedy: str) -> TypeError:
    """Return a TypeError for the caller to raise: "rule, got found. remedy."."""
    return TypeError(_message(rule, found, remedy))


def import_optional(package: str, user: str, requirement: str) -> ModuleType:
    """Import an optional package, or raise ImportError with the command that installs it.

    Args:
        package: Name of the package or module.
        user: The part of the library that needs it, as the error names it.
        requirement: What pip installs.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = error.name or package
        raise ImportError(
            f"{user} requires {name}, got none. Install it: pip install {requirement}", name=name
        ) from error


def _message(rule: str, found: object, remedy: str) -> str:
    return f"{rule}, got {found}. {remedy}."


def as_device(device: torch.device | str) -> torch.device:
    """Return the device, or raise ValueError if this machine does not have it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise value_error("`device` must be a device of this machine", device, 'Pass "cpu"') from error
    return torch.device(device)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise an error unless `value` is an integer of Python or NumPy in least..most; None means no upper limit."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise type_error(f"`{name}` must be an integer", f"{value!r} of type {type(value).__name__}", "Pass an int")
    value = int(value)
    if most is not None and not least <= value <= most:
        raise value_error(f"`{name}` must lie in {least}..{most}", value, "Choose a number in this range")
    if value < least:
        raise value_error(f"`{name}` must be at least {least}", value, "Raise it")


def check_number(
    name: str, value: object, least: float | None = None, most: float | None = None, *, above: float | None = None
) -> None:
    """Raise an error unless `value` is a finite number of Python or NumPy.

    Args:
        name: Name of the parameter.
        value: Value of the parameter.
        least: Smallest allowed value.
        most: Largest allowed value.
        above: A limit that the value must exceed.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise type_error(f"`{name}` must be a number", f"{value!r} of type {type(value).__name__}", "Pass a float")
    value = float(value)
    if not isfinite(value):
        raise value_error(f"`{name}` must be finite", value, "Pass a finite number")
    if above is not None and not value > above:
        raise value_error(f"`{name}` must be above {above}", value, "Raise it")
    if least is not None and most is not None and not least <= value <= most:
        raise value_error(f"`{name}` must lie in {least}..{most}", value, "Choose a number in this range")
    if least is not None and value < least:
        raise value_error(f"`{name}` must be at least {least}", value, "Raise it")
    if most is not None and value > most:
        raise value_error(f"`{name}` must be at most {most}", value, "Lower it")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise value_error(f"`{name}` must be one of {listed}", repr(value), "Pass one of these")


def check_module(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a module of PyTorch."""
    if not isinstance(value, nn.Module):
        found = "the class " + value.__name__ if isinstance(value, type) else type(value).__name__
        raise type_error(f"`{name}` must be an nn.Module", found, "Pass an instance of a subclass of nn.Module")


def as_features(output: object, source: str = "The trunk") -> Float[Tensor, "b f"]:
    """Return the features in the output of a trunk: the output itself, or its attribute `pooler_output`.

    Args:
        output: A tensor, or an object with several outputs, such as a `ModelOutput` of Hugging Face.
        source: Subject of the error messages.

    Raises:
        TypeError: The output is not a tensor and has no `pooler_output` that is one.
        ValueError: The tensor is not 2-D.
    """
    features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(features, Tensor):
        raise type_error(
            f"{source} must return a tensor (b, f)",
            type(output).__name__,
            "Wrap it in an nn.Module whose `forward` returns one tensor, for example "
            "`self.trunk(images).last_hidden_state[:, 0]` or `self.trunk(images)[0]`",
        )
    if features.ndim != 2:  # noqa: PLR2004
        name = "features" if features is output else "a `pooler_output`"
        has_tokens = features.ndim == 3  # noqa: PLR2004
        raise value_error(
            f"{source} must return {name} of shape (b, f)",
            f"shape {tuple(features.shape)}",
            "Select one token or average them" if has_tokens else "End it in nn.AdaptiveAvgPool2d(1) and nn.Flatten()",
        )
    return features


def check_scalar(name: str, loss: object) -> None:
    """Raise an error unless the value that a loss returned is a scalar tensor."""
    if not isinstance(loss, Tensor):
        raise type_error(f"`{name}` must return a scalar tensor", type(loss).__name__, "Return one tensor to minimize")
    if loss.ndim:
        raise value_error(f"`{name}` must return a scalar", f"shape {tuple(loss.shape)}", "Return its mean")


def check_embeddings(embeddings: object, name: str = "embeddings") -> ColumnRange:
    """Raise an error unless `embeddings` is a finite floating-point tensor (n, d) with at least one row and column.

    Returns:
        The range of each column, which one pass over the embeddings computes.
    """
    if not isinstance(embeddings, Tensor):
        raise type_error(f"`{name}` must be a tensor (n, d)", type(embeddings).__name__, "Use torch.as_tensor")
    if embeddings.ndim != 2 or 0 in embeddings.shape:  # noqa: PLR2004
        shape = tuple(embeddings.shape)
        raise value_error(f"`{name}` must be a non-empty 2-D tensor", f"shape {shape}", "Flatten each item to one row")
    if not embeddings.is_floating_point():
        raise type_error(f"`{name}` must be a floating-point tensor", embeddings.dtype, "Call .float() first")
    column_range = ColumnRange.of(embeddings)
    if not column_range.is_finite:
        raise _not_finite(embeddings, name)
    return column_range


def as_rows(embeddings: Any, name: str = "embeddings") -> Tensor:  # noqa: ANN401 (tensor or array)
    """Return an array as a tensor, which shares its memory if it can, and other objects as they are.

    `check_embeddings` checks the result.

    Raises:
        TypeError: The array does not hold floating-point numbers.
    """
    if not isinstance(embeddings, np.ndarray):
        return embeddings  # type: ignore[no-any-return]
    if embeddings.dtype.kind != "f":
        raise type_error(f"`{name}` must be floating-point", embeddings.dtype, "Call .astype(np.float32) first")
    dtype = embeddings.dtype if embeddings.dtype in _TORCH_TYPES else np.float32
    return torch.from_numpy(np.require(embeddings, dtype, ["C", "W"]))  # PyTorch warns of read-only arrays


def check_indices(indices: object, n: int | None = None, name: str = "indices") -> None:
    """Raise an error unless `indices` is a non-empty tensor (q, k) of positions of n items; None means q items."""
    rule, remedy = f"`{name}` must be a tensor (q, k) of integers", "Pass the indices that a search returned"
    if not isinstance(indices, Tensor):
        raise type_error(rule, type(indices).__name__, remedy)
    if not _is_integer(indices):
        raise type_error(rule, indices.dtype, remedy)
    if indices.ndim != 2 or 0 in indices.shape:  # noqa: PLR2004
        raise value_error(f"`{name}` must be a non-empty 2-D tensor", f"shape {tuple(indices.shape)}", remedy)
    n, low, high = len(indices) if n is None else n, int(indices.min()), int(indices.max())
    if low < 0 or high >= n:
        rule = f"Positions in `{name}` must be from 0 to {n - 1}"
        raise value_error(rule, f"{low} to {high}", "Pass the position of each item")


def check_distinct_items(indices: Int64[Tensor, "q k"], name: str) -> None:
    """Raise ValueError if a row has an item twice; `name` begins the message."""
    ordered = indices.sort(dim=1).values
    is_repeated = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
    if is_repeated.any():
        found = f"an item twice in row {int(is_repeated.int().argmax())}"
        raise value_error(f"{name} must have each item at most once", found, "Remove the repeated items")


def _not_finite(embeddings: Float[Tensor, "n d"], name: str) -> ValueError:
    """Return the error for embeddings that have NaN, infinity, or numbers above the range of float32."""
    invalid = torch.cat([~embeddings[rows].isfinite().all(dim=1) for rows in row_slices(embeddings)])
    rule, kind = "must be finite", "NaN or infinity"
    remedy = "Lower the learning rate, clip the gradient, or inspect that image"
    if not invalid.any():
        invalid = torch.cat([~embeddings[rows].float().isfinite().all(dim=1) for rows in row_slices(embeddings)])
        rule, kind, remedy = "must lie in the range of float32", "larger numbers", "Divide all rows by one number"
    found = f"{int(invalid.sum())} of {len(invalid)} rows with {kind}, the first is row {int(invalid.int().argmax())}"
    return value_error(f"`{name}` {rule}", found, remedy)


def check_distinct(column_range: ColumnRange, n: int) -> None:
    """Raise ValueError if all of n embeddings are equal, so that they cannot be clustered."""
    if column_range.is_single_row:
        raise collapse_error(f"{n} equal rows")


def collapse_error(found: str) -> ValueError:
    """Return the error for embeddings of a model that maps all images to one point."""
    remedy = "Lower the learning rate, or check that the images themselves differ"
    return value_error("Embeddings must differ", f"{found}: the model has collapsed", remedy)


def as_labels(labels: Any, n: int | None = None, name: str = "labels") -> Int64[Tensor, " n"]:  # noqa: ANN401 (tensor, array or sequence)
    """Return labels as an int64 tensor on their device.

    Args:
        labels: A tensor, a NumPy array or a sequence of integers.
        n: Required number of labels. None does not check it.
        name: Name of the parameter.

    Raises:
        TypeError: The labels are not integers.
        ValueError: There are no labels and `n` is not 0, or the labels are not one-dimensional, or are not `n`.
    """
    found = labels if isinstance(labels, Tensor) else _as_array(labels, name)
    is_empty = found.ndim > 0 and len(found) == 0
    if is_empty and n != 0:
        raise value_error(f"`{name}` must hold at least one label", "none", "Pass one label per item")
    if not (is_empty or _is_integer(found)):  # NumPy makes an empty list floating-point
        raise type_error(f"`{name}` must be integers", found.dtype, "Convert them to int64")
    may_overflow = found.dtype in {np.dtype(np.uint64), torch.uint64}
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found.astype(np.int64))  # a copy, which has no negative strides and is writable
    if found.ndim != 1 or (n is not None and len(found) != n):
        shape = "(n,)" if n is None else f"({n},)"
        rule = f"`{name}` must have shape {shape}, one label per item"
        raise value_error(rule, f"shape {tuple(found.shape)}", "Pass one label per item, in order")
    if may_overflow and (found.long() < 0).any():
        raise value_error(f"`{name}` must be below 2**63", "a larger number", "Number the classes from 0")
    return found.long()


def _as_array(labels: Any, name: str) -> NDArray[Any]:  # noqa: ANN401 (a sequence of any type)
    try:
        return np.asarray(labels)
    except (ValueError, TypeError) as error:  # a nested sequence, or tensors on a GPU
        found = f"{type(labels).__name__} that is not an array ({error})"
        raise type_error(f"`{name}` must be integers", found, "Pass one integer per item") from error


def _is_integer(labels: Tensor | NDArray[Any]) -> bool:
    if isinstance(labels, Tensor):
        return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return labels.dtype.kind in "iu"
