"""A training in progress: its parts, its history and its state."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from udmlss._generators import global_states, set_global_states
from udmlss._torch import device_of, load_plain_state_dict, plain_state_dict
from udmlss.clustering.matching import agreement
from udmlss.distributed import SynchronizedErrors, all_gather_objects, rank, world_size
from udmlss.results import FitResult, LabelFreeScores, RoundReport, StepReport, StopReason
from udmlss.training.identity import check_identity
from udmlss.training.module_state import ModuleAttributes
from udmlss.training.round import Round
from udmlss.training.rounds import Rounds
from udmlss.types import PseudoLabels, Stateful

if TYPE_CHECKING:
    from udmlss.losses import UDMLSSLoss
    from udmlss.models.embedding_model import EmbeddingModel
    from udmlss.models.rotation import RotationPretextHead


class Run:
    """A training in progress, as callbacks receive it.

    Attributes:
        modules: The trained modules by name.
        model: The model that is trained.
        criterion: The loss.
        rotation_head: The rotation head, or None.
        auxiliary: The auxiliary loss, or None.
        optimizer: The optimizer.
        scheduler: The scheduler, or None.
        scaler: Scales the loss if the precision is "float16".
        rounds: The rounds. `rounds.model` is the model that is embedded and clustered.
        callbacks: The callbacks.
        step: Number of optimizer steps that were taken.
        history: Reports of the rounds that ended.
        pseudo_labels: The newest clusters, or None before the first clustering.
        stop_reason: Why training ended.
        is_complete: Whether training ended without an error.
        stop_request: The reason for which training is to end after the present step, or None.
        show_progress: Whether a progress bar is shown.
        identity: Description of the run, which checkpoints and ranks compare.
        weights_step: The step of the model's weights after training, if it is not the last one; `BestWeights` sets it.
    """

    def __init__(
        self,
        rounds: Rounds,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        callbacks: Sequence[object],
        *,
        show_progress: bool = False,
    ) -> None:
        self.rounds = rounds
        self.modules = dict(modules)
        # the types were checked before; the model may be a compiled one
        self.model: EmbeddingModel = modules["model"]  # type: ignore[assignment]
        self.criterion: UDMLSSLoss = modules["criterion"]  # type: ignore[assignment]
        self.rotation_head: RotationPretextHead | None = modules.get("rotation_head")  # type: ignore[assignment]
        self.auxiliary = modules.get("auxiliary")
        self.optimizer, self.scheduler = optimizer, scheduler
        self.scaler = GradScaler(device_of(self.model).type, enabled=rounds.options.precision == "float16")
        self.callbacks = callbacks
        self.show_progress = show_progress
        self.step = 0
        self.history: list[RoundReport] = []
        self.pseudo_labels: PseudoLabels | None = None
        self.stop_reason: StopReason = "max_steps"
        self.is_complete = False
        self.weights_step: int | None = None
        self.identity: dict[str, Any] = {}
        self._steps: list[StepReport] = []
        self._attributes = ModuleAttributes(self.modules)
        self._seconds, self._clock = 0.0, time.perf_counter()
        self._requested: str | None = None
        self.stop_request: str | None = None

    @property
    def label_free(self) -> LabelFreeScores | None:
        """The newest label-free scores, or None."""
        return self.history[-1].label_free if self.history else self.rounds.start_scores

    @property
    def seconds(self) -> float:
        """Wall time of the present round."""
        return self._seconds + time.perf_counter() - self._clock

    @property
    def features(self) -> Float[Tensor, "n f"] | None:
        """Features of all images with the weights after training, or None if they were not computed."""
        return self.rounds.features if self.weights_step in {None, self.step} else None

    def request_stop(self, reason: str) -> None:
        """Request that all ranks end training after this step; `stop_request` is set once all ranks know it."""
        self._requested = _first_reason([reason, self._requested])
        if world_size() == 1:
            self.stop_request = self._requested

    @contextmanager
    def synchronized_step(self) -> Iterator[None]:
        """Synchronize errors and requests to stop across ranks, once at the end of the block."""
        with SynchronizedErrors() as errors:
            yield
            if self._requested is not None:
                errors.ask_stop()
        if errors.stop:
            self.stop_request = _first_reason(all_gather_objects(self._requested))

    def record(self, report: StepReport) -> None:
        """Append the report of a step of the present round."""
        self._steps.append(report)

    def start_round(self, round_: Round) -> None:
        """Let the criterion follow the clusters of a round, unless the round is resumed."""
        if round_.batches_done == 0 or self.pseudo_labels is None:
            self.pseudo_labels = _with_agreement(round_.pseudo_labels, self.pseudo_labels)
        if round_.batches_done == 0:
            self.criterion.start_round(self.pseudo_labels, self.optimizer)

    def end_round(self, label_free: LabelFreeScores | None) -> RoundReport | None:
        """Append the report of the present round to the history and return it; None if the round had no steps."""
        if self.pseudo_labels is None or not self._steps:
            return None
        number = len(self.history)
        report = _summarize(number, self.pseudo_labels, self._steps, label_free=label_free, seconds=self.seconds)
        self.history.append(report)
        self._steps, self._seconds, self._clock = [], 0.0, time.perf_counter()
        self.rounds.end_round()
        return report

    def result(self) -> FitResult:
        """Return the result of the training."""
        return FitResult(
            history=tuple(self.history),
            pseudo_labels=self.pseudo_labels,
            stop_reason=self.stop_reason,
            start=self.rounds.start_scores,
            weights_step=self.step if self.weights_step is None else self.weights_step,
            features=self.features,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings, None, and dictionaries and lists of them."""
        return {
            "identity": self.identity,
            "modules": {name: plain_state_dict(module) for name, module in self.modules.items()},
            "attributes": self._attributes.changed(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rounds": self.rounds.state_dict(),
            "callbacks": [callback.state_dict() for callback in self._stateful()],
            "step": self.step,
            "history": [asdict(report) for report in self.history],
            "steps": [asdict(report) for report in self._steps],
            "pseudo_labels": None if self.pseudo_labels is None else dict(vars(self.pseudo_labels)),
            "seconds": self.seconds,
            "random": all_gather_objects(global_states(device_of(self.model))),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: The state belongs to a run with other parts, images or settings.
        """
        check_identity(state["identity"], self.identity)
        self.step = state["step"]
        self.history = [RoundReport.from_dict(report) for report in state["history"]]
        self._steps = [StepReport(**report) for report in state["steps"]]
        self._seconds, self._clock = state["seconds"], time.perf_counter()
        if state["pseudo_labels"] is not None:
            self.pseudo_labels = PseudoLabels(**state["pseudo_labels"])
            # sets the shapes of parameters that depend on clusters
            self.criterion.start_round(self.pseudo_labels, self.optimizer)
        for name, module in self.modules.items():
            load_plain_state_dict(module, state["modules"][name])
        self._attributes.load(state["attributes"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.rounds.load_state_dict(state["rounds"])
        for callback, found in zip(self._stateful(), state["callbacks"], strict=True):
            callback.load_state_dict(found)
        set_global_states(state["random"][rank()], device_of(self.model))

    def _stateful(self) -> list[Stateful]:
        return [callback for callback in self.callbacks if isinstance(callback, Stateful)]


def _first_reason(requests: Sequence[str | None]) -> str:
    """Return the reason that takes precedence: "terminate" over all others."""
    reasons = [request for request in requests if request is not None]
    return "terminate" if "terminate" in reasons else max(reasons)


def _with_agreement(pseudo_labels: PseudoLabels, previous: PseudoLabels | None) -> PseudoLabels:
    """Return the clusters with their agreement with the previous ones, which labelers of users need not compute."""
    has_previous = previous is not None and len(previous.labels) == len(pseudo_labels.labels)
    if pseudo_labels.agreement is not None or not has_previous:
        return pseudo_labels
    return replace(pseudo_labels, agreement=agreement(pseudo_labels.labels, previous.labels))  # type: ignore[union-attr]


def _summarize(
    number: int,
    pseudo_labels: PseudoLabels,
    steps: Sequence[StepReport],
    *,
    label_free: LabelFreeScores | None,
    seconds: float,
) -> RoundReport:
    """Summarize the steps of a round."""
    n_images = len(pseudo_labels.labels)
    return RoundReport(
        round=number,
        step=steps[-1].step,
        n_clusters=pseudo_labels.n_clusters,
        n_unassigned=pseudo_labels.n_unassigned,
        largest_cluster=int(pseudo_labels.sizes.max()) / n_images,
        smallest_cluster=int(pseudo_labels.sizes.min()) / n_images,
        agreement=pseudo_labels.agreement,
        loss=fmean(step.loss for step in steps),
        metric_loss=fmean(step.metric_loss for step in steps),
        rotation_loss=_mean([step.rotation_loss for step in steps]),
        rotation_accuracy=_mean([step.rotation_accuracy for step in steps]),
        auxiliary_loss=_mean([step.auxiliary_loss for step in steps]),
        label_free=label_free,
        seconds=seconds,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
