"""The parts, settings and images of a run, which a checkpoint must share with the run that resumes from it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isclose
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim import Optimizer

from udmlss._checks import value_error
from udmlss.distributed import world_size
from udmlss.training.rounds import Rounds
from udmlss.types import Stateful

_COMPARED_IMAGES = 16
_GRID = 4  # images are compared as averages of 4 x 4 parts, which decoders of other machines hardly change
_TOLERANCE = 0.02  # largest difference of two averages, in standard deviations of the averages
_DEPTH = 3  # of objects that are settings of objects, such as a clusterer of a labeler
_LISTED_DIFFERENCES = 3
_IMAGES = "content of the images"


def identify(
    rounds: Rounds,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    scheduler: object,
    *,
    callbacks: Sequence[object],
    settings: Mapping[str, object],
) -> dict[str, Any]:
    """Describe a run by its settings, its parts, the shapes of its weights, and its images.

    Args:
        rounds: The rounds.
        modules: The trained modules by name.
        optimizer: The optimizer.
        scheduler: The scheduler, or None.
        callbacks: The callbacks. Those without a state do not count.
        settings: Further settings that change the result.

    Returns:
        Numbers, strings and sequences of them by name, and averages of some images.
    """
    found: dict[str, Any] = {**rounds.settings, **settings, "number of processes": world_size()}
    found |= describe("labeler", rounds.labeler) | ({} if scheduler is None else describe("scheduler", scheduler))
    found |= {"optimizer": type(optimizer).__name__} | optimizer_settings(optimizer)
    found["callbacks"] = ", ".join(_name_of(callback) for callback in callbacks if isinstance(callback, Stateful))
    for name, module in modules.items():
        if name != "model":
            for path, part in module.named_modules(prefix=name):
                found |= describe(path, part)
    return found | _shapes(modules) | {"number of images": len(rounds.cluster_images), _IMAGES: _averages(rounds)}


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
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if _is_plain(value):
            found[f"{name}.{argument}"] = value
        elif inspect.isfunction(value) or isinstance(value, type):
            found[f"{name}.{argument}"] = value.__qualname__
        elif depth and value is not None and not isinstance(value, nn.Module | Tensor) and not inspect.isroutine(value):
            found |= describe(f"{name}.{argument}", value, depth - 1)
    return found


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Return the settings of the parameter groups, under names such as "optimizer.trunk.lr"."""
    return {
        f"optimizer.{group.get('name', number)}.{key}": value
        for number, group in enumerate(optimizer.param_groups)
        for key, value in group.items()
        if key not in {"name", "params"} and _is_plain(value)
    }


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the entries in which two descriptions differ, as values found and expected; None stands for no entry."""
    pairs = {name: (found.get(name), expected.get(name)) for name in {**expected, **found}}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def list_differences(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the first differences as text."""
    texts = [f"{name} {_text(found)} instead of {_text(expected)}" for name, (found, expected) in pairs.items()]
    more = len(texts) - _LISTED_DIFFERENCES
    return ", ".join(texts[:_LISTED_DIFFERENCES]) + (f", and {more} more differences" if more > 0 else "")


def check_identity(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError if two runs differ, with the names of what differs."""
    if pairs := differences(found, expected):
        remedy = "Resume with the same parts and settings, or start from scratch in another folder"
        raise value_error("A checkpoint must be of the same run", list_differences(pairs), remedy)


def _constructor_arguments(part: object) -> list[str]:
    """Return the names of the constructor arguments of all classes of an object: those of PML pass `**kwargs` on."""
    names: dict[str, None] = {}
    for kind in type(part).__mro__:
        constructor: Callable[..., None] | None = kind.__dict__.get("__init__")
        if inspect.isfunction(constructor):
            names |= dict.fromkeys(inspect.signature(constructor).parameters)
    # losses of PML call the number of classes `num_classes` or `K`, and it follows the number of clusters
    return [name for name in names if name not in {"self", "device", "num_workers", "optimizer", "num_classes", "K"}]


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, Real | str)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _show_same_images(one, other)
    if isinstance(one, Real) and isinstance(other, Real):
        return isclose(one, other, rel_tol=0 if isinstance(one, Integral) else 1e-9)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other


def _text(value: object) -> str:
    if isinstance(value, Tensor):
        return f"with mean {float(value.mean()):.6g}"
    return "none" if value is None else str(value)


def _name_of(callback: object) -> str:
    """Return the type of a callback, and the decay of a weight average: other settings of callbacks may change."""
    name, decay = type(callback).__name__, getattr(callback, "decay", None)
    return name if decay is None else f"{name}({decay})"


def _shapes(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {
        f"shape of {name}.{key}": tuple(value.shape)
        for name, module in modules.items()
        if name != "criterion"  # its shapes follow the number of clusters
        for key, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }


def _averages(rounds: Rounds) -> Tensor | str:
    """Return averages of parts of some images, or a fixed text if loading an image twice gives different images."""
    first, second = _load_averages(rounds), _load_averages(rounds)
    return first if _show_same_images(first, second) else "random in each loading"


def _load_averages(rounds: Rounds) -> Float[Tensor, " m"]:
    n_images = len(rounds.cluster_images)
    indices = [number * n_images // _COMPARED_IMAGES for number in range(_COMPARED_IMAGES)]
    images = rounds.loader.items(rounds.cluster_images, indices)
    return torch.cat([adaptive_avg_pool2d(image.float(), _GRID).flatten() for image in images])


def _show_same_images(one: Float[Tensor, " m"], other: Float[Tensor, " n"]) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=_TOLERANCE * float(one.std()))
