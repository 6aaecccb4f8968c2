"""The weights of the round with the highest label-free score."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn

from udmlss._checks import value_error
from udmlss._torch import load_plain_state_dict, plain_state_dict
from udmlss.results import RoundReport
from udmlss.training.validation import check_augmented

if TYPE_CHECKING:
    from udmlss.training.run import Run


class BestWeights:
    """End training with the weights of the best round, or of the start if no round was better.

    Rounds are compared by `LabelFreeScores.score`, which needs `images` with random augmentations. A copy of the best
    weights is held in memory.

    Raises:
        ValueError: When training starts: there is one round only, or `images` have no random augmentations.

    Example:
        `fit(model, images, ..., callbacks=[BestWeights()])`
    """

    needs_label_free = True

    def __init__(self) -> None:
        self._run: Run | None = None
        self._states: dict[str, dict[str, Any]] = {}
        self._score: float | None = None
        self._step = 0

    def on_start(self, run: "Run") -> None:
        """Copy the weights before training."""
        rounds = run.rounds
        if rounds.n_steps <= rounds.steps_per_round:
            found = f"one round of {rounds.n_steps} steps"
            raise value_error("`BestWeights` needs 2 or more rounds to compare", found, "Lower `relabel_every`")
        check_augmented(rounds)
        self._run, self._score, self._step = run, None, 0
        self._states = _copy_states(self._modules())

    def on_round(self, report: RoundReport) -> None:
        """Copy the weights if their score is the highest so far."""
        if self._run is None or report.label_free is None:
            return
        if self._score is None and self._run.rounds.start_scores is not None:
            self._score = self._run.rounds.start_scores.score
        if self._score is None or report.label_free.score > self._score:
            self._score, self._step = report.label_free.score, report.step
            self._states = _copy_states(self._modules())

    def on_end(self, run: "Run") -> None:
        """Load the best weights into the model and the other modules."""
        if not self._states:
            return
        for name, module in self._modules().items():
            load_plain_state_dict(module, self._states[name])
        load_plain_state_dict(run.model, self._states["model"])
        run.weights_step = self._step
        self._run, self._states = None, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights, their score and their step."""
        return {"states": self._states, "score": self._score, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best weights, their score and their step."""
        self._states, self._score, self._step = state["states"], state["score"], state["step"]

    def _modules(self) -> dict[str, nn.Module]:
        """Return the modules of the run, with the model that is embedded, which may be a weight average."""
        if self._run is None:
            return {}
        return self._run.modules | {"model": self._run.rounds.model}


def _copy_states(modules: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    return {name: deepcopy(plain_state_dict(module)) for name, module in modules.items()}
