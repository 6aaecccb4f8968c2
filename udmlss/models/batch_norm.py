"""Batch norm that keeps its statistics while the rest of the model trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from udmlss._checks import value_error


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Hold every batch norm of the model in evaluation mode, whatever `.train()` is called meanwhile.

    Their running statistics are used and stay as they are, so that turned images and few clusters per batch do not
    disturb them; their scale and shift still train. It ends with the `with` block.

    Args:
        model: Any module; without batch norm nothing happens.

    Raises:
        ValueError: Every batch norm still has its initial statistics, so there is nothing to keep.

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
    handles = [norm.register_forward_pre_hook(_evaluate) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, training in zip(norms, modes, strict=True):
            norm.training = training


def _evaluate(norm: nn.Module, _inputs: Any) -> None:  # noqa: ANN401 (torch's hook signature)
    norm.training = False


def _check_has_statistics(norms: list[_BatchNorm]) -> None:
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    if means and not any(mean.any() for mean in means):
        raise value_error(
            "Freezing batch norm needs statistics worth keeping",
            f"all {len(means)} batch norms as they are initialised",
            "Pass `freeze_batch_norm=False` to train from scratch, or load pretrained weights first",
        )
