"""Calls of the callbacks' methods."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from udmlss._checks import type_error
from udmlss.distributed import is_rank_zero
from udmlss.results import RoundReport, StepReport
from udmlss.training.callbacks.checkpoint import Checkpoint
from udmlss.training.callbacks.weight_average import WeightAverage

if TYPE_CHECKING:
    from udmlss.training.run import Run

_METHODS = ("on_start", "on_step", "on_round", "on_end")


class Callbacks:
    """The callbacks of a run, in the order in which they are called.

    A `Checkpoint` comes last, because it saves the state of the others.

    Args:
        callbacks: One callback or a sequence of them.
        average_weights: Whether to add a `WeightAverage` if there is none.

    Raises:
        TypeError: An object is neither a function nor has a method of a callback.
    """

    def __init__(self, callbacks: object, *, average_weights: bool = False) -> None:
        listed = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        if average_weights and not any(isinstance(callback, WeightAverage) for callback in listed):
            listed.insert(0, WeightAverage())
        for callback in listed:
            _check_callback(callback)
        self._checkpoints: list[Checkpoint] = [each for each in listed if isinstance(each, Checkpoint)]
        self._others: list[Any] = [each for each in listed if not isinstance(each, Checkpoint)]
        self.ordered: list[Any] = [*self._others, *self._checkpoints]
        self._started: list[Any] = []

    @property
    def need_label_free(self) -> bool:
        """Whether a callback needs label-free scores."""
        return any(getattr(callback, "needs_label_free", False) for callback in self.ordered)

    def start(self, run: "Run") -> None:
        """Call every `on_start`."""
        for callback in self.ordered:
            self._started.append(callback)
            if hasattr(callback, "on_start"):
                callback.on_start(run)

    def step(self, report: StepReport, run: "Run") -> None:
        """Call every `on_step`, and request the end of training if one returns True."""
        results = [callback.on_step(report) for callback in self._others if hasattr(callback, "on_step")]
        if any(_is_true(result) for result in results):
            run.request_stop("callback")
        for checkpoint in self._checkpoints:
            checkpoint.on_step(report)

    def end_round(self, report: RoundReport | None, run: "Run") -> bool:
        """Call every `on_round` and every function; return whether training ends, the same on every rank."""
        if report is None:
            return False
        with run.synchronized_step():
            results = [callback.on_round(report) for callback in self._others if hasattr(callback, "on_round")]
            if is_rank_zero():
                results += [function(report) for function in self._others if _is_function(function)]
            if any(_is_true(result) for result in results):
                run.request_stop("callback")
        for checkpoint in self._checkpoints:  # outside of the block, because a checkpoint communicates between ranks
            checkpoint.on_round(report)
        return self.end_training(run)

    def end_training(self, run: "Run") -> bool:
        """Return whether training ends now. After SIGTERM, a `Checkpoint` ends the process when it is called next."""
        is_left_to_checkpoint = run.stop_request == "terminate" and bool(self._checkpoints)
        return run.stop_request is not None and not is_left_to_checkpoint

    def end(self, run: "Run") -> None:
        """Call `on_end` of every callback that was started, the last one first, also if one of them raises an error.

        A second call ends the callbacks whose `on_end` was not called, or was interrupted by Ctrl-C.
        """
        with ExitStack() as stack:
            for callback in list(self._started):
                stack.callback(self._end_one, callback, run)

    def _end_one(self, callback: Any, run: "Run") -> None:  # noqa: ANN401 (a callback may be of any type)
        try:
            if hasattr(callback, "on_end"):
                callback.on_end(run)
        except Exception:
            self._started.remove(callback)
            raise
        self._started.remove(callback)


def _is_true(result: object) -> bool:
    return isinstance(result, bool | np.bool_) and bool(result)


def _is_function(callback: object) -> bool:
    return not any(hasattr(callback, name) for name in _METHODS)


def _check_callback(callback: object) -> None:
    has_method = any(hasattr(callback, name) for name in _METHODS)
    if isinstance(callback, type) or not (callable(callback) or has_method):
        methods = ", ".join(f"`{name}`" for name in _METHODS)
        rule = f"A callback must be a function or an object with one of {methods}"
        raise type_error(rule, repr(callback), "Pass an instance, such as BestWeights()")
