"""Which weights of a run to keep: the best that a label-free score has seen."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from udmlss.types import Keep, LabelFreeScores


class Keeper:
    """Watches a run's scores, and puts its best weights back if asked to.

    Args:
        parts: What trains.
        keep: "best" remembers a copy of the parts' weights whenever the score is the highest so far.
        patience: How many looks in a row without a higher score are enough; None if none ever are.
    """

    def __init__(self, parts: Sequence[nn.Module], keep: Keep, patience: int | None) -> None:
        self.parts = parts
        self.keep = keep
        self.patience = patience
        self._since_best = 0
        self._best_step = 0
        self._best_score = float("-inf")
        self._states: list[dict[str, Any]] = []

    def see(self, step: int, scores: LabelFreeScores | None) -> None:
        """Take note of how good the weights look after so many steps, if that was measured."""
        if scores is None:
            return
        self._since_best += 1
        if scores.score > self._best_score:
            self._since_best, self._best_step, self._best_score = 0, step, scores.score
            if self.keep == "best":
                self._states = [deepcopy(part.state_dict()) for part in self.parts]

    @property
    def out_of_patience(self) -> bool:
        """Whether the score has not risen for as long as was allowed."""
        return self.patience is not None and self._since_best >= self.patience

    def finish(self, step: int) -> int:
        """Put the best weights back if they are to be kept; return the step that the weights are of."""
        if not self._states:
            return step
        for part, state in zip(self.parts, self._states, strict=True):
            part.load_state_dict(state)
        return self._best_step

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers, best weights included."""
        return {
            "since_best": self._since_best,
            "best_step": self._best_step,
            "best_score": self._best_score,
            "states": self._states,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._since_best, self._best_step = state["since_best"], state["best_step"]
        self._best_score, self._states = state["best_score"], state["states"]
