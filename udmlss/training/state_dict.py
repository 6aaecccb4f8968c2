"""All that a run must know to go on where it was: what a checkpoint holds, and whether it is of this run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from udmlss._checks import value_error
from udmlss._torch import device_of, seeded_generators
from udmlss.dataset import IndexedImages
from udmlss.distributed import all_gather_objects, rank, world_size
from udmlss.training.keeper import Keeper
from udmlss.training.progress import Progress
from udmlss.training.state import Parts
from udmlss.types import Images, LabelFreeScores, PseudoLabels, RoundReport, Stateful, StepReport

_SAMPLE = 16  # images by which a data set is recognised
_SHOWN = 3  # differences that a refusal names
State = dict[str, Any]


class RunState:
    """What changes while a run goes on, to a state dict and back.

    Args:
        parts: What learns, and what teaches it.
        keeper: Holds the best weights so far.
        progress: Counts and clusters.
        others: Labeler and callbacks; those that have a `state_dict` take part.
        identity: What the run is of: a state with another identity is refused.
    """

    def __init__(
        self, parts: Parts, keeper: Keeper, progress: Progress, others: Sequence[object], identity: Mapping[str, str]
    ) -> None:
        self.parts, self.keeper, self.progress = parts, keeper, progress
        self.others = [other for other in others if isinstance(other, Stateful)]
        self.identity = {**identity, "labeler and callbacks": ", ".join(type(other).__name__ for other in self.others)}
        self._built = self._attributes()

    def state_dict(self) -> State:
        """Return the state: tensors, numbers, text, and dicts and lists of them."""
        parts, average, scheduler = self.parts, self.parts.average, self.parts.scheduler
        return {
            "identity": self.identity,
            "modules": {name: module.state_dict() for name, module in parts.modules.items()},
            "attributes": _changed(self._attributes(), self._built),
            "average": None if average is None else average.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "keeper": self.keeper.state_dict(),
            "others": [other.state_dict() for other in self.others],
            "progress": _progress_state(self.progress),
            "random": all_gather_objects(_random_state(device_of(parts.model))),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to that state.

        Raises:
            ValueError: It is of another run.
        """
        _check_identity(state["identity"], self.identity)
        parts = self.parts
        _load_progress(self.progress, state["progress"])
        if self.progress.pseudo is not None:
            parts.criterion.start_round(self.progress.pseudo)  # gives what follows the clusters its shape
        for name, module in parts.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, attributes in state["attributes"].items():
            _set_attributes(self._all_modules()[name], attributes)
        parts.optimizer.load_state_dict(state["optimizer"])
        if parts.average is not None:
            parts.average.load_state_dict(state["average"])
        if parts.scheduler is not None:
            parts.scheduler.load_state_dict(state["scheduler"])
        self.keeper.load_state_dict(state["keeper"])
        for other, found in zip(self.others, state["others"], strict=True):
            other.load_state_dict(found)
        _set_random_state(state["random"][rank()], device_of(parts.model))

    def _all_modules(self) -> dict[str, nn.Module]:
        named = self.parts.modules.items()
        return {f"{name}.{path}": part for name, module in named for path, part in module.named_modules()}

    def _attributes(self) -> dict[str, State]:
        return {name: _plain(part) for name, part in self._all_modules().items()}


def identify(parts: Parts, images: Images, settings: Mapping[str, object]) -> dict[str, str]:
    """Return what a run is of, in words: settings, the shapes of all weights, the images' number and a digest of some.

    Args:
        parts: What learns, and what teaches it.
        images: Those that are clustered. Some are taken twice; where transforms make them differ, only their
            number counts.
        settings: What else decides the result.
    """
    shapes = {
        f"{name}.{key}": f"shape {tuple(value.shape)}"
        for name, module in parts.modules.items()
        for key, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    digests = {_digest(images), _digest(images)}
    content = digests.pop() if len(digests) == 1 else "drawn anew each time"
    words = {name: str(value) for name, value in settings.items()}
    words |= {"number of processes": str(world_size())}
    words |= {"optimizer": type(parts.optimizer).__name__, "scheduler": type(parts.scheduler).__name__}
    return words | {"number of images": str(len(images)), "content of the images": content} | shapes


def _plain(part: nn.Module) -> State:
    """Return what a module keeps outside its state dict: numbers, tensors and the states of generators.

    Losses that draw keep a generator so, and `CrossBatchMemory` where in its memory it is.
    """
    found = {name: value for name, value in vars(part).items() if name != "training" and not name.startswith("_")}
    drawing = {name: value.get_state() for name, value in found.items() if isinstance(value, torch.Generator)}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | Tensor)} | drawing


def _changed(now: Mapping[str, State], before: Mapping[str, State]) -> dict[str, State]:
    """Return what is not as it was, so that settings that never change stay those of the program that goes on."""
    found = {
        name: {key: value for key, value in state.items() if not _same(value, before[name].get(key))}
        for name, state in now.items()
    }
    return {name: state for name, state in found.items() if state}


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def _set_attributes(part: nn.Module, state: State) -> None:
    for name, value in state.items():
        now = vars(part).get(name)
        if isinstance(now, torch.Generator):
            now.set_state(value)
        else:
            setattr(part, name, value.to(now.device) if isinstance(now, Tensor) else value)


def _progress_state(progress: Progress) -> State:
    pseudo = progress.pseudo
    return {
        "history": [asdict(report) for report in progress.history],
        "steps": [asdict(report) for report in progress.steps],
        "pseudo": None if pseudo is None else vars(pseudo),
        "start": None if progress.start is None else asdict(progress.start),
        "latest": None if progress.latest is None else asdict(progress.latest),
        "remembered": progress.remembered,
        "seconds": progress.elapsed,
    }


def _load_progress(progress: Progress, state: State) -> None:
    progress.history = [
        RoundReport(**report | {"label_free": _scores(report["label_free"])}) for report in state["history"]
    ]
    progress.steps = [StepReport(**report) for report in state["steps"]]
    progress.pseudo = None if state["pseudo"] is None else PseudoLabels(**state["pseudo"])
    progress.start, progress.latest = _scores(state["start"]), _scores(state["latest"])
    progress.remembered, progress.seconds = state["remembered"], state["seconds"]


def _scores(state: State | None) -> LabelFreeScores | None:
    return None if state is None else LabelFreeScores(**state)


def _random_state(device: torch.device) -> State:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: State, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _digest(images: Images) -> str:
    items, found = IndexedImages(images), hashlib.sha256()
    with seeded_generators(0):
        for number in range(_SAMPLE):
            image, _ = items[number * len(images) // _SAMPLE]
            found.update(image.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _check_identity(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if names:
        differences = [f"{name} {found.get(name, 'none')} and not {wanted.get(name, 'none')}" for name in names]
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise value_error(
            "A checkpoint must be of the same run",
            f"{', '.join(differences[:_SHOWN])}{more}",
            "Go on with the same parts and settings, or begin anew in another folder",
        )
