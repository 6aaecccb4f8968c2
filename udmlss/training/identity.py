"""What a run is of, in words, so that a checkpoint of another run is not resumed."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from udmlss._checks import value_error
from udmlss._torch import seeded_generators
from udmlss.dataset import IndexedImages
from udmlss.distributed import world_size
from udmlss.training.callbacks.weight_average import WeightAverage
from udmlss.training.rounds import Rounds
from udmlss.types import Stateful

_SAMPLED_IMAGES = 16
_LISTED_DIFFERENCES = 3


def identify(
    rounds: Rounds,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    scheduler: object,
    *,
    callbacks: Sequence[object],
    settings: Mapping[str, object],
) -> dict[str, str]:
    """Describe a run: its settings, parts, shapes of weights, and its images.

    Args:
        rounds: The rounds.
        modules: The trained modules by name.
        optimizer: The optimizer.
        scheduler: The scheduler, or None.
        callbacks: The callbacks. Functions do not count, because they have no name that lasts.
        settings: Further settings that decide the result.

    Returns:
        A description by name.
    """
    words = {name: _word(value) for name, value in {**rounds.settings, **settings}.items()}
    words |= {"number of processes": str(world_size()), "labeler": describe(rounds.labeler)}
    words |= {"optimizer": type(optimizer).__name__, "scheduler": type(scheduler).__name__}
    words |= {f"{name} of the optimizer": value for name, value in _optimizer_settings(optimizer).items()}
    words |= {
        "callbacks": ", ".join(_describe_callback(callback) for callback in callbacks if isinstance(callback, Stateful))
    }
    for name in set(modules) - {"model"}:
        words |= {f"{name}.{path}".rstrip("."): describe(part) for path, part in modules[name].named_modules()}
    words |= {"number of images": str(len(rounds.images)), "content of the images": _digest(rounds.cluster_images)}
    return words | _shapes(modules)


def describe(part: object) -> str:
    """Return the type of an object and its settings: the arguments of its constructor that it holds as plain values."""
    values = {name: getattr(part, name, None) for name in _constructor_arguments(part)}
    plain = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
    listed = ", ".join(f"{name}={_word(value)}" for name, value in sorted(plain.items()))
    return f"{type(part).__name__}({listed})"


def _describe_callback(callback: object) -> str:
    return describe(callback) if isinstance(callback, WeightAverage) else type(callback).__name__


def check_identity(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise ValueError if two runs differ, with the names of what differs."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if not names:
        return
    differences = [f"{name} {found.get(name, 'none')} instead of {expected.get(name, 'none')}" for name in names]
    more = len(names) - _LISTED_DIFFERENCES
    listed = ", ".join(differences[:_LISTED_DIFFERENCES]) + (f", and {more} more differences" if more > 0 else "")
    remedy = "Resume with the same parts and settings, or start from scratch in another folder"
    raise value_error("A checkpoint must be of the same run", listed, remedy)


def _constructor_arguments(part: object) -> list[str]:
    """Return the names of the constructor arguments of all classes of an object: those of PML pass `**kwargs` on."""
    names: dict[str, None] = {}
    for kind in type(part).__mro__:
        constructor = kind.__dict__.get("__init__")
        if inspect.isfunction(constructor):
            names |= dict.fromkeys(inspect.signature(constructor).parameters)
    return [name for name in names if name not in {"self", "device", "num_workers"}]


def _word(value: object) -> str:
    """Return a setting as text, the same for 1 and 1.0."""
    return f"{value:.10g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _optimizer_settings(optimizer: Optimizer) -> dict[str, str]:
    """Return the settings of each parameter group, such as the learning rate."""
    found: dict[str, str] = {}
    for number, group in enumerate(optimizer.param_groups):
        label = f"group {group.get('name', number)}"
        plain = {key: value for key, value in group.items() if isinstance(value, bool | int | float | tuple)}
        found |= {f"{key} in {label}": _word(value) for key, value in plain.items()}
    return found


def _shapes(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    return {
        f"{name}.{key}": f"shape {tuple(value.shape)}"
        for name, module in modules.items()
        for key, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }


def _digest(images: IndexedImages) -> str:
    """Return a digest of some images, or a fixed text if loading an image twice gives different images."""
    digests = {_digest_once(images), _digest_once(images)}
    return digests.pop() if len(digests) == 1 else "sampled anew each time"


def _digest_once(images: IndexedImages) -> str:
    digest = hashlib.sha256()
    with seeded_generators(0):
        for number in range(_SAMPLED_IMAGES):
            image, _ = images[number * len(images) // _SAMPLED_IMAGES]
            digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
