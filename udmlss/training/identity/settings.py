"""Settings of objects, as the arguments of their constructors."""

import inspect
from numbers import Real
from typing import Any

from torch import Tensor, nn

_DEPTH = 3  # of objects that are settings of objects, such as a clusterer of a labeler
# Losses of PML call the number of classes `num_classes` or `K`, and it follows the number of clusters
_NOT_COMPARED = ("self", "device", "num_workers", "optimizer", "rank", "local_rank", "num_classes", "K")


def describe(name: str, part: object, depth: int = _DEPTH) -> dict[str, Any]:
    """Return the type of an object and the arguments of its constructor that it holds as attributes.

    Args:
        name: Name of the object.
        part: The object. Modules in its attributes are not described.
        depth: Number of levels of objects in objects.

    Returns:
        The type under `name`, and each argument under the name and its own, such as "labeler.n_clusters".

    Example:
        >>> from sklearn.cluster import DBSCAN
        >>> describe("clusterer", DBSCAN(eps=0.3))["clusterer.eps"]
        0.3
    """
    found: dict[str, Any] = {name: type(part).__name__}
    for argument in _constructor_arguments(part):
        value = getattr(part, argument, None)
        if isinstance(value, nn.Parameter):  # trained, or initialized at random, so that it is not a setting
            continue
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if is_plain(value):
            found[f"{name}.{argument}"] = value
        elif inspect.isfunction(value) or isinstance(value, type):
            found[f"{name}.{argument}"] = value.__qualname__
        elif depth and value is not None and not isinstance(value, nn.Module | Tensor) and not inspect.isroutine(value):
            found |= describe(f"{name}.{argument}", value, depth - 1)
    return found


def is_plain(value: object) -> bool:
    """Return whether a value is a number, a string, or a list or tuple of them."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, Real | str)


def _constructor_arguments(part: object) -> list[str]:
    """Return the names of the constructor arguments of all classes of an object: those of PML pass `**kwargs` on."""
    names: dict[str, None] = {}
    for kind in type(part).__mro__:
        constructor: Any = kind.__dict__.get("__init__")
        if inspect.isfunction(constructor):
            names |= dict.fromkeys(inspect.signature(constructor).parameters)
    return [name for name in names if name not in _NOT_COMPARED]
