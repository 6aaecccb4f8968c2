"""Calls of the callbacks' methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udmlss._checks import type_error
from udmlss.distributed import is_rank_zero, run_on_rank_zero
from udmlss.training.callbacks.checkpoint import Checkpoint
from udmlss.types import RoundReport, StepReport

if TYPE_CHECKING:
    from udmlss.training.run import Run

_METHODS = ("on_start", "on_step", "on_round", "on_end")


class Callbacks:
    """The callbacks of a run, in the order in which they are called.

    A `Checkpoint` comes last, because it saves the state of the others.

    Args:
        callbacks: One callback or a sequence of them.

    Raises:
        TypeError: An object is neither a function nor has a method of a callback.
    """

    def __init__(self, callbacks: object) -> None:
        listed = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        for callback in listed:
            _check_callback(callback)
        self.ordered: list[Any] = sorted(listed, key=lambda callback: isinstance(callback, Checkpoint))

    @property
    def need_label_free(self) -> bool:
        """Whether a callback needs label-free scores."""
        return any(getattr(callback, "needs_label_free", False) for callback in self.ordered)

    def start(self, run: "Run") -> None:
        """Call every `on_start`."""
        self._call("on_start", run)

    def step(self, report: StepReport, run: "Run") -> None:
        """Call every `on_step`, and request the end of training if one returns True."""
        if any(result is True for result in self._call("on_step", report)):
            run.request_stop("callback")

    def end_round(self, report: RoundReport | None, run: "Run") -> bool:
        """Call every `on_round` and every plain function; return whether one returned True, the same on every rank."""
        if report is None:
            return False
        others: list[Any] = [callback for callback in self.ordered if not isinstance(callback, Checkpoint)]
        with run.synchronized_step():
            results = [callback.on_round(report) for callback in others if hasattr(callback, "on_round")]
            if is_rank_zero():
                results += [function(report) for function in others if _is_function(function)]
        for callback in self.ordered[len(others) :]:
            callback.on_round(report)  # a checkpoint communicates between ranks, so it is called outside of the block
        return run_on_rank_zero(lambda: any(result is True for result in results))

    def end(self, run: "Run") -> None:
        """Call every `on_end`, the last callback first."""
        for callback in reversed(self.ordered):
            if hasattr(callback, "on_end"):
                callback.on_end(run)

    def _call(self, name: str, argument: object) -> list[Any]:
        return [getattr(callback, name)(argument) for callback in self.ordered if hasattr(callback, name)]


def _is_function(callback: object) -> bool:
    return not any(hasattr(callback, name) for name in _METHODS)


def _check_callback(callback: object) -> None:
    has_method = any(hasattr(callback, name) for name in _METHODS)
    if isinstance(callback, type) or not (callable(callback) or has_method):
        methods = ", ".join(f"`{name}`" for name in _METHODS)
        rule = f"A callback must be a function or an object with one of {methods}"
        raise type_error(rule, repr(callback), "Pass an instance, such as BestWeights()")
