"""Early stopping without labels."""

from typing import TYPE_CHECKING, Any, Literal

from udmlss._checks import check_choice, check_integer, check_number
from udmlss.results import RoundReport
from udmlss.training.validation import check_augmented

if TYPE_CHECKING:
    from udmlss.training.run import Run

Monitor = Literal["score", "agreement"]


class EarlyStopping:
    """End training when the label-free score no longer rises, or when the clusters no longer change.

    Args:
        monitor: "score" counts the rounds since the highest `LabelFreeScores.score`, which needs `images` with random
            augmentations. "agreement" counts the rounds in a row whose clusters agree with those of the round before.
        patience: Number of rounds after which training ends.
        threshold: Adjusted Rand index in 0..1 from which clusters count as unchanged, for "agreement".

    Raises:
        ValueError: An argument is out of its range. When training starts: `images` have no random augmentations, and
            `monitor` is "score".

    Example:
        `fit(model, images, ..., callbacks=[EarlyStopping(patience=3), BestWeights()])`
    """

    def __init__(self, monitor: Monitor = "score", patience: int = 3, *, threshold: float = 0.95) -> None:
        check_choice("monitor", monitor, ("score", "agreement"))
        check_integer("patience", patience, 1)
        check_number("threshold", threshold, 0, 1)
        self.monitor = monitor
        self.patience = int(patience)
        self.threshold = float(threshold)
        self._run: Run | None = None
        self._best: float | None = None
        self._rounds = 0

    @property
    def needs_label_free(self) -> bool:
        """Whether label-free scores are monitored."""
        return self.monitor == "score"

    def on_start(self, run: "Run") -> None:
        """Reset the count."""
        if self.monitor == "score":
            check_augmented(run.rounds)
        self._run, self._best, self._rounds = run, None, 0

    def on_round(self, report: RoundReport) -> bool:
        """Return whether `patience` rounds were reached."""
        if self.monitor == "agreement":
            unchanged = report.agreement is not None and report.agreement >= self.threshold
            self._rounds = self._rounds + 1 if unchanged else 0
        elif report.label_free is not None:
            self._count(report.label_free.score)
        return self._rounds >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the count."""
        return {"best": self._best, "rounds": self._rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best score and the count."""
        self._best, self._rounds = state["best"], state["rounds"]

    def _count(self, score: float) -> None:
        if self._best is None and self._run is not None and self._run.rounds.start_scores is not None:
            self._best = self._run.rounds.start_scores.score
        if self._best is None or score > self._best:
            self._best, self._rounds = score, 0
        else:
            self._rounds += 1
