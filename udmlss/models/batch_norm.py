"""Batch normalization with fixed running statistics during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from udmlss._checks import value_error
from udmlss.models.neck import BatchNormNeck


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Keep pretrained batch normalization layers in evaluation mode for the `with` block, even after `train()`.

    The layers normalize with their running statistics and do not update them, so that rotated images and batches of few
    clusters do not change the statistics. Scale and shift are still trained. A layer that still has its initial
    statistics, such as that of a new neck on a pretrained trunk, is not frozen: it learns them.

    Args:
        model: Any module, compiled or not. Without batch normalization the block has no effect.

    Raises:
        ValueError: All layers still have their initial statistics, and are not only those of a `BatchNormNeck`.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> norm.running_mean += 1
        >>> with frozen_batch_norm(norm):
        ...     normalized = norm.train()(torch.rand(8, 2))
        >>> norm.running_mean
        tensor([1., 1.])
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    pretrained = [norm for norm in norms if not _has_initial_statistics(norm)]
    necks = {norm for module in model.modules() if isinstance(module, BatchNormNeck) for norm in module.modules()}
    if not pretrained and not necks.issuperset(norms):
        raise value_error(
            "Frozen batch norm needs the running statistics of a trained model",
            f"initial statistics in all {len(norms)} layers",
            "Pass `from_scratch=True` to `fit`, or load pretrained weights first",
        )
    modes = [(norm, norm.training, vars(norm).get("train")) for norm in pretrained]
    for norm in pretrained:
        norm.eval()
        vars(norm)["train"] = _StayInEvaluation(norm)
    try:
        yield
    finally:
        for norm, training, train in modes:
            norm.training = training
            del norm.train
            if train is not None:  # of a block around this one
                vars(norm)["train"] = train


@contextmanager
def constant_statistics(model: nn.Module) -> Iterator[None]:
    """Normalize batches as usual in the `with` block, but do not update the running statistics."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    settings = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, n_batches) in zip(norms, settings, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches


class _StayInEvaluation:
    """A replacement of the method `train` that does nothing, so that the layer stays in evaluation mode.

    A forward hook could not do this: code that was compiled before the block ignores new hooks, but reads the mode.
    """

    def __init__(self, norm: nn.Module) -> None:
        self._norm = norm

    def __call__(self, _mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002 (the signature of torch)
        return self._norm

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (type(self._norm).train, self._norm)  # A copy of the layer is not frozen


def _has_initial_statistics(norm: _BatchNorm) -> bool:
    mean, variance, n_batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or (n_batches is not None and n_batches > 0):
        return False
    return not mean.any() and bool((variance == 1).all())
