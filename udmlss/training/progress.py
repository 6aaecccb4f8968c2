"""How far a run has come: what it counts, remembers and reports."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from torch import Tensor

from udmlss.types import LabelFreeScores, PseudoLabels, RoundReport, StepReport


@dataclass
class Progress:
    """What has happened so far; the only thing in a run that changes, beside the parts themselves.

    Attributes:
        history: Reports of the rounds that are done.
        steps: Reports of the steps done in the round that is not.
        pseudo: The newest clusters.
        start: How good the embeddings looked before training.
        latest: How good they looked last.
        remembered: The newest embedding of each image that a step or the first look saw, if these are clustered.
        seconds: Time the round took before an interruption.
    """

    history: list[RoundReport] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    pseudo: PseudoLabels | None = None
    start: LabelFreeScores | None = None
    latest: LabelFreeScores | None = None
    remembered: Tensor | None = None
    seconds: float = 0.0
    _clock: float = field(default_factory=time.perf_counter)

    @property
    def step(self) -> int:
        """Optimiser steps done since the start."""
        return self.whole_rounds + len(self.steps)

    @property
    def whole_rounds(self) -> int:
        """Optimiser steps done in rounds that are done."""
        return self.history[-1].step if self.history else 0

    @property
    def elapsed(self) -> float:
        """Seconds that the round has taken."""
        return self.seconds + time.perf_counter() - self._clock

    def end_round(self, pseudo: PseudoLabels, label_free: LabelFreeScores | None) -> RoundReport:
        """Report the round and begin the next; without scores if it was cut short."""
        steps = self.steps
        report = RoundReport(
            round=len(self.history),
            step=self.step,
            n_clusters=pseudo.n_clusters,
            n_unassigned=pseudo.n_unassigned,
            largest_cluster=int(pseudo.sizes.max()) / len(pseudo.labels),
            smallest_cluster=int(pseudo.sizes.min()) / len(pseudo.labels),
            agreement=pseudo.agreement,
            loss=fmean(one.loss for one in steps),
            metric_loss=fmean(one.metric_loss for one in steps),
            rotation_loss=_mean([one.rotation_loss for one in steps]),
            rotation_accuracy=_mean([one.rotation_accuracy for one in steps]),
            auxiliary_loss=_mean([one.auxiliary_loss for one in steps]),
            label_free=label_free,
            seconds=self.elapsed,
        )
        self.steps, self.seconds, self._clock = [], 0.0, time.perf_counter()
        self.history.append(report)
        self.latest = label_free
        return report

    def __str__(self) -> str:
        """Return what the progress bar says after a step."""
        done, pseudo, scores = self.steps[-1], self.pseudo, self.latest
        words = [f"loss {done.loss:.3f}"]
        if done.rotation_accuracy is not None:
            words.append(f"turns {done.rotation_accuracy:.0%} (chance 25%)")
        if done.auxiliary_loss is not None:
            words.append(f"auxiliary {done.auxiliary_loss:.3f}")
        if pseudo is not None:
            words += _about_clusters(pseudo)
        if scores is not None:
            words.append(f"self-retrieval {scores.self_retrieval:.0%}")
            words.append(f"rank {scores.effective_rank:.0f}")
            words.append(f"score {scores.score:.3f}")
        return ", ".join(words)


def _about_clusters(pseudo: PseudoLabels) -> list[str]:
    words = [f"{pseudo.n_clusters} clusters of {pseudo.sizes.min()} to {pseudo.sizes.max()}"]
    if pseudo.n_unassigned:
        words.append(f"{pseudo.n_unassigned} left out")
    if pseudo.agreement is not None:
        words.append(f"agreement {pseudo.agreement:.2f}")
    return words


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
