"""The base class of loggers, which selects the values and logs them on rank 0."""

import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import UInt8
from torch import Tensor
from torch.optim import Optimizer

from udmlss._checks import check_integer
from udmlss.distributed import is_rank_zero, run_on_rank_zero
from udmlss.results import LabelFreeScores, RoundReport, StepReport
from udmlss.training.callbacks.loggers.cluster_sheet import cluster_sheet

if TYPE_CHECKING:
    from udmlss.training.run import Run

Kind = Literal["step", "round"]
Values = Mapping[str, float | None]

_ROUND = tuple(field.name for field in fields(RoundReport) if field.name != "label_free")
_SCORES = (*(field.name for field in fields(LabelFreeScores)), "score")


class Logger:
    """Log every step and every round on rank 0.

    A subclass writes the values. An error in `_connect` ends training before it starts. A later error is a warning, and
    the logger writes nothing further, because a failed logger must not end the training. A logger has no state that a
    checkpoint saves, so that it can be added to a run that is resumed, or removed from it.

    Args:
        show_clusters: Number of clusters whose images are shown at the end of every round. 0 shows none.
    """

    def __init__(self, show_clusters: int = 0) -> None:
        check_integer("show_clusters", show_clusters, 0)
        self.show_clusters = int(show_clusters)
        self._run: Run | None = None
        self._is_open = False
        self._rates: dict[str, float] = {}
        self._clock: float | None = None
        self._hook: Any = None

    def _connect(self) -> None:
        """Prepare for writing, before training and on rank 0; the first step is not known yet."""

    def _open(self, first_step: int, first_round: int) -> None:
        """Remove the values of steps and rounds of an interrupted run that will be logged again.

        Args:
            first_step: The first step that will be logged.
            first_round: The step at the end of the first round that will be logged.
        """

    def _write(self, kind: Kind, step: int, values: Values) -> None:
        """Write values by name; None is a value that was not measured."""
        raise NotImplementedError

    def _write_image(self, step: int, image: UInt8[Tensor, "h w 3"]) -> None:
        """Write a sheet of clusters."""

    def _close(self, *, completed: bool) -> None:
        """Write what is left and close files.

        Args:
            completed: Whether training ended without an error.
        """

    def on_start(self, run: "Run") -> None:
        """Prepare for writing, and read the learning rates from now on."""
        run_on_rank_zero(self._connect)
        if is_rank_zero():
            self._run, self._is_open, self._clock = run, False, None
            # A scheduler has changed the learning rates when `on_step` is called
            self._hook = run.optimizer.register_step_pre_hook(self._read_rates)
            self._read_rates(run.optimizer)  # the hook is not called in a step that `GradScaler` skips

    def on_step(self, report: StepReport) -> None:
        """Log a step."""
        now, before = time.perf_counter(), self._clock
        seconds = None if before is None else now - before
        self._log("step", report.step, asdict(report) | self._rates | {"seconds": seconds})
        self._clock = now

    def on_round(self, report: RoundReport) -> None:
        """Log a round."""
        self._log("round", report.step, _round_values(report))
        self._clock = None  # the next step comes after an embedding pass

    def on_end(self, run: "Run") -> None:
        """Remove the hook and close the logger."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._run = None
        if is_rank_zero():
            try:
                self._close(completed=run.is_complete)
            except Exception as error:  # noqa: BLE001 (of any tracker)
                self._warn(error)

    def _read_rates(self, optimizer: Optimizer, *_: object) -> None:
        groups = enumerate(optimizer.param_groups)
        rates = {str(group.get("name", number)): float(group["lr"]) for number, group in groups}
        self._rates = {f"lr_{re.sub('[^a-zA-Z0-9_.-]', '_', name)}": rate for name, rate in rates.items()}

    def _log(self, kind: Kind, step: int, values: Values) -> None:
        if self._run is None:
            return
        try:
            if not self._is_open:
                self._begin(self._run, kind, step)
            self._write(kind, step, values)
            if kind == "round" and self.show_clusters and self._run.pseudo_labels is not None:
                labels = self._run.pseudo_labels.labels
                self._write_image(step, cluster_sheet(self._run.rounds, labels, self.show_clusters))
        except Exception as error:  # noqa: BLE001 (of any tracker)
            self._run = None
            self._warn(error)

    def _begin(self, run: "Run", kind: Kind, step: int) -> None:
        """Open before the first report. A run that is resumed at the end of a round reports this round first."""
        self._is_open = True
        if kind == "step" and step == 1:
            self._open(0, 0)
            if run.rounds.start_scores is not None:
                self._write("round", 0, dict.fromkeys(_ROUND) | {"step": 0} | _score_values(run.rounds.start_scores))
        else:
            self._open(step if kind == "step" else step + 1, step)

    def _warn(self, error: Exception) -> None:
        name, reason = type(self).__name__, f"{type(error).__name__}: {error}"
        warnings.warn(f"{name} failed and logs nothing further, got {reason}. Training continues.", stacklevel=2)


def by_full_name(kind: Kind, values: Values) -> dict[str, float]:
    """Return the measured values under names such as "step/loss", without the step and the round."""
    known = {name: value for name, value in values.items() if value is not None}
    return {f"{kind}/{name}": float(value) for name, value in known.items() if name not in {"step", "round"}}


def _round_values(report: RoundReport) -> dict[str, float | None]:
    return {name: getattr(report, name) for name in _ROUND} | _score_values(report.label_free)


def _score_values(scores: LabelFreeScores | None) -> dict[str, float | None]:
    return {name: getattr(scores, name, None) for name in _SCORES}
