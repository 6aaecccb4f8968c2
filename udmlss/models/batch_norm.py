"""Batch normalization with fixed running statistics during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from udmlss._checks import value_error


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Keep all batch normalization layers of a model in evaluation mode for the `with` block, even after `train()`.

    The layers normalize with their running statistics and do not update them, so that rotated images and batches of few
    clusters do not change the statistics. Scale and shift are still trained.

    Args:
        model: Any module. Without batch normalization the block has no effect.

    Raises:
        ValueError: All layers still have their initial statistics.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> norm.running_mean += 1
        >>> with frozen_batch_norm(norm):
        ...     normalized = norm.train()(torch.rand(8, 2))
        >>> norm.running_mean
        tensor([1., 1.])
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    _check_has_statistics(norms)
    modes = [norm.training for norm in norms]
    handles = [norm.register_forward_pre_hook(_set_evaluation_mode) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, training in zip(norms, modes, strict=True):
            norm.training = training


def _set_evaluation_mode(norm: nn.Module, _inputs: Any) -> None:  # noqa: ANN401 (torch's hook signature)
    norm.training = False


def _check_has_statistics(norms: list[_BatchNorm]) -> None:
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    if means and not any(mean.any() for mean in means):
        raise value_error(
            "Frozen batch norm needs the running statistics of a trained model",
            f"initial statistics in all {len(means)} layers",
            "Pass `freeze_batch_norm=False` to train from scratch, or load pretrained weights first",
        )
