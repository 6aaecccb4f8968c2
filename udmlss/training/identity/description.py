"""The parts, settings and images of a run, which all its ranks and the checkpoints that it resumes from must share."""

from collections.abc import Mapping, Sequence
from math import isclose
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim import Optimizer

from udmlss._checks import value_error
from udmlss._torch import plain_state_dict
from udmlss.dataset import IndexedImages
from udmlss.distributed import all_gather_objects, world_size
from udmlss.training.identity.checksums import checksum, checksums, has_numbers, order_checksums
from udmlss.training.identity.settings import describe, is_plain
from udmlss.types import Stateful

if TYPE_CHECKING:
    from udmlss.training.rounds import Rounds
    from udmlss.training.run import Run

_COMPARED_IMAGES = 16
_GRID = 4  # images are compared as averages of 4 x 4 parts, which decoders of other machines hardly change
_TOLERANCE = 0.02  # largest difference of two averages, in standard deviations of the averages
_LISTED_DIFFERENCES = 3
_IMAGES = "content of the images"
_CHECKSUM, _TENSOR = "checksum of ", "checksum of the tensor "


def identify(
    rounds: "Rounds",
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
    found = {**_describe_rounds(rounds), **settings, "number of processes": world_size()}
    for name, images in (("images", rounds.images), ("cluster_images", rounds.cluster_images)):
        found |= {_CHECKSUM + key: value for key, value in order_checksums(name, images.images).items()}
    found |= {} if scheduler is None else describe("scheduler", scheduler)
    found |= {"optimizer": type(optimizer).__name__} | optimizer_settings(optimizer)
    found["callbacks"] = ", ".join(_name_of(callback) for callback in callbacks if isinstance(callback, Stateful))
    for name, module in modules.items():
        if name != "model":
            for path, part in module.named_modules(prefix=name):
                found |= describe(path, part)
    return found | _shapes(modules)


def describe_rank(run: "Run") -> dict[str, Any]:
    """Describe what all ranks of a run must share in addition to its identity; nothing in a single process.

    Functions as callbacks are not described, because rank 0 alone calls them. Neither are settings that may differ,
    such as `num_workers`.
    """
    if world_size() == 1:
        return {}
    found = _describe_data(run.rounds) | _describe_callbacks(run.callbacks) | _describe_layers(run.model)
    found |= _describe_tensors(run.criterion)
    for name, module in run.modules.items():
        found |= _describe_parameters(name, module)
    for number, group in enumerate(run.optimizer.param_groups):
        found[f"number of parameters in optimizer.{group.get('name', number)}"] = len(group["params"])
    return found


def describe_loop(rounds: "Rounds") -> dict[str, Any]:
    """Describe what all ranks that iterate over rounds must share; nothing in a single process."""
    if world_size() == 1:
        return {}
    model = rounds.model
    found = _describe_rounds(rounds) | rounds.position | _shapes({"model": model}) | _describe_layers(model)
    found |= _describe_parameters("model", model) | _describe_data(rounds)
    for name, parameter in model.named_parameters():
        if type(parameter) is nn.Parameter:  # parameters of other types may hold other weights on each rank
            found[f"{_TENSOR}model.{name}"] = checksum(parameter.reshape(-1))
    return found


def check_ranks(found: Mapping[str, Any]) -> None:
    """Raise the same ValueError on every rank if a rank has another description than rank 0.

    The descriptions are exchanged in one collective operation, and no rank may omit the call.
    """
    first, *others = all_gather_objects(found)
    for rank, other in enumerate(others, start=1):
        pairs = {
            name: pair
            for name, pair in differences(first, other).items()
            if not (name.startswith(_CHECKSUM) and None in pair)  # for example of a cache that one rank has filled
        }
        if pairs:
            rule = "All ranks must train with the same settings and with all images in the same order"
            listed = list_differences(pairs, f"{{}} on rank 0 and {{}} on rank {rank}")
            raise value_error(rule, listed, _remedy(next(iter(pairs))))


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Return the settings of the parameter groups, under names such as "optimizer.trunk.lr"."""
    return {
        f"optimizer.{group.get('name', number)}.{key}": value
        for number, group in enumerate(optimizer.param_groups)
        for key, value in group.items()
        if key not in {"name", "params", "fused", "foreach"} and is_plain(value)  # these depend on the device
    }


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the entries in which two descriptions differ, as values found and expected; None stands for no entry."""
    pairs = {name: (found.get(name), expected.get(name)) for name in {**expected, **found}}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def list_differences(pairs: Mapping[str, tuple[Any, Any]], form: str = "{} instead of {}") -> str:
    """Return the first differences as text."""
    texts = [f"{name} {form.format(_text(one), _text(other))}" for name, (one, other) in pairs.items()]
    more = len(texts) - _LISTED_DIFFERENCES
    return ", ".join(texts[:_LISTED_DIFFERENCES]) + (f", and {more} more differences" if more > 0 else "")


def check_identity(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError if two runs differ, with the names of what differs."""
    if pairs := differences(found, expected):
        remedy = "Resume with the same parts and settings, or start from scratch in another folder"
        raise value_error("A checkpoint must be of the same run", list_differences(pairs), remedy)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _show_same_images(one, other)
    if isinstance(one, Real) and isinstance(other, Real):
        return isclose(one, other, rel_tol=0 if isinstance(one, Integral) else 1e-9)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other


def _remedy(name: str) -> str:
    """Return what to do if ranks differ in an entry of their descriptions."""
    if name.startswith(_TENSOR):
        return "Call `torch.manual_seed` with the same seed before the modules are built"
    if name.startswith((_CHECKSUM, "content of ", "number of images")):
        return "Open the same files on every rank, for example sorted by path; each rank takes its part of the images"
    return "Pass the same arguments on every rank, also the same seed: ranks sample different batches nevertheless"


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
        for key, value in plain_state_dict(module).items()
        if isinstance(value, Tensor)
    }


def _describe_rounds(rounds: "Rounds") -> dict[str, Any]:
    found = {"number of images": len(rounds.cluster_images), **rounds.settings}
    return found | describe("labeler", rounds.labeler) | {_IMAGES: _averages(rounds, rounds.cluster_images)}


def _describe_data(rounds: "Rounds") -> dict[str, Any]:
    """Return the length of the training, and checksums of the files or the images."""
    found: dict[str, Any] = {"max_steps": rounds.n_steps, "label_free": rounds.label_free}
    found["start_features"] = "given" if rounds.start_features is not None else "none"
    datasets = {"images": rounds.images}
    if rounds.images is not rounds.cluster_images:
        datasets["cluster_images"] = rounds.cluster_images
        found["content of the training images"] = _averages(rounds, rounds.images)
    for name, dataset in datasets.items():
        found |= {_CHECKSUM + key: value for key, value in checksums(name, dataset.images).items()}
    return found


def _describe_callbacks(callbacks: Sequence[object]) -> dict[str, Any]:
    """Return the types of callbacks that are not functions, and the settings of those of this library."""
    events = ("start", "step", "round", "end")
    objects = [each for each in callbacks if any(hasattr(each, f"on_{event}") for event in events)]
    found: dict[str, Any] = {"callbacks": ", ".join(type(each).__name__ for each in objects)}
    for each in objects:
        if type(each).__module__.startswith("udmlss."):  # others may hold settings of one rank, such as a folder
            found |= describe(type(each).__name__, each, depth=1)
    return found


def _describe_parameters(name: str, module: nn.Module) -> dict[str, Any]:
    """Return the type of every parameter, and whether it is trained."""
    return {
        f"{name}.{key}": f"{str(value.dtype).removeprefix('torch.')}, {'trained' if value.requires_grad else 'frozen'}"
        for key, value in module.named_parameters()
    }


def _describe_tensors(criterion: nn.Module) -> dict[str, Any]:
    """Return checksums of buffers and attributes of the loss, which `DistributedDataParallel` does not copy."""
    return {
        f"{_TENSOR}{path}.{key}": checksum(value.reshape(-1))
        for path, part in criterion.named_modules(prefix="criterion")
        for key, value in {**vars(part), **dict(part.named_buffers(recurse=False))}.items()
        if has_numbers(value)
    }


def _describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return the type of every part of a model, and the settings of torch's layers, such as the rate of dropout."""
    found: dict[str, Any] = {}
    for path, part in model.named_modules(prefix="model"):
        is_of_torch = type(part).__module__.startswith("torch.nn.")
        found |= describe(path, part, depth=0) if is_of_torch else {path: type(part).__name__}
    return found


def _averages(rounds: "Rounds", images: IndexedImages) -> Tensor | str:
    """Return averages of parts of some images, or a fixed text if loading an image twice gives different images."""
    first, second = _load_averages(rounds, images), _load_averages(rounds, images)
    return first if _show_same_images(first, second) else "random in each loading"


def _load_averages(rounds: "Rounds", images: IndexedImages) -> Float[Tensor, " m"]:
    indices = [number * len(images) // _COMPARED_IMAGES for number in range(_COMPARED_IMAGES)]
    loaded = rounds.loader.items(images, indices)
    return torch.cat([adaptive_avg_pool2d(image.float().cpu(), _GRID).flatten() for image in loaded])


def _show_same_images(one: Float[Tensor, " m"], other: Float[Tensor, " n"]) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=_TOLERANCE * float(one.std()))
