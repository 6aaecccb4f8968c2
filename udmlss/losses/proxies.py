"""Proxies and classifier weights of metric losses, which follow the cluster centers."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import value_error
from udmlss.types import UsesClusterCenters

_ROW_WEIGHTS = ("proxies",)  # names of parameters (k, d), with one class per row
_COLUMN_WEIGHTS = ("W", "fc", "weight")  # names of parameters (d, k * m), with m columns per class


def check_fits(loss: nn.Module, n_clusters: int | None, dimension: int | None) -> None:
    """Raise ValueError if a loss has parameters for other clusters or embeddings; None does not check a number."""
    for name, weight in _class_weights(loss):
        check_dimension(loss, weight.shape[1 if name in _ROW_WEIGHTS else 0], dimension)
    if isinstance(loss, UsesClusterCenters):
        check_dimension(loss, loss.embedding_size, dimension)
    expected = _n_classes(loss)
    if None not in (expected, n_clusters) and expected != n_clusters:
        raise value_error(
            f"{type(loss).__name__} has parameters for {expected} clusters and needs this number in every round",
            n_clusters,
            f"Use ClusterPseudoLabeler({expected}), build the loss for {n_clusters}, or choose a loss without proxies",
        )


def check_dimension(loss: nn.Module, expected: int, dimension: int | None) -> None:
    """Raise ValueError if a loss was built for embeddings of another dimension; None does not check it."""
    if dimension not in (None, expected):
        raise value_error(
            f"{type(loss).__name__} was built for embeddings of {expected} dimensions",
            dimension,
            f"Build it with embedding size {dimension}",
        )


def move_proxies(loss: nn.Module, centers: Float[Tensor, "k d"]) -> None:
    """Rotate the class weights of a loss to the cluster centers.

    The mean direction of a class's weights becomes the direction of its center from the mean of all centers. This
    mean is subtracted because embeddings of a pretrained network, and thus their centers, lie in a narrow cone. The
    weights of a class are rotated together, which preserves their lengths and the angles between them.
    """
    deviations = centers - centers.mean(dim=0)
    for name, weight in _class_weights(loss):
        rows = weight.detach() if name in _ROW_WEIGHTS else weight.detach().T
        vectors = rows.reshape(len(centers), -1, rows.shape[1])
        mean = functional.normalize(functional.normalize(vectors, dim=2).mean(dim=1, keepdim=True), dim=2)
        target = functional.normalize(deviations.to(rows)).unsqueeze(1)
        moved = _rotate(vectors, mean, target).flatten(0, 1)
        with torch.no_grad():
            weight.copy_(moved if name in _ROW_WEIGHTS else moved.T)


def _rotate(
    vectors: Float[Tensor, "k m d"], start: Float[Tensor, "k 1 d"], target: Float[Tensor, "k 1 d"]
) -> Float[Tensor, "k m d"]:
    """Rotate vectors by the smallest rotation from `start` to `target`, or reflect them above 90 degrees."""
    # Opposite directions are reflected because the sum of start and target is then close to zero.
    is_opposite = (start * target).sum(dim=2, keepdim=True) < 0
    rotated = _reflect(_reflect(vectors, start), start + target)
    return torch.where(is_opposite, _reflect(vectors, start - target), rotated)


def _reflect(vectors: Float[Tensor, "k m d"], normal: Float[Tensor, "k 1 d"]) -> Float[Tensor, "k m d"]:
    normal = functional.normalize(normal, dim=2)
    return vectors - 2 * (vectors * normal).sum(dim=2, keepdim=True) * normal


def _class_weights(loss: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and the value of each parameter of the loss that holds one or more directions per class."""
    if isinstance(loss, BaseMetricLossFunction):
        for name, parameter in loss.named_parameters(recurse=False):
            if name in _ROW_WEIGHTS + _COLUMN_WEIGHTS:
                yield name, parameter


def _n_classes(loss: nn.Module) -> int | None:
    if not isinstance(loss, BaseMetricLossFunction):
        return None
    count: int = getattr(loss, "num_classes", 0)  # not all losses have it, and ProxyNCALoss sets it to 0
    if count:
        return count
    sizes = [weight.shape[0 if name in _ROW_WEIGHTS else 1] for name, weight in _class_weights(loss)]
    beta = getattr(loss, "beta", None)  # MarginLoss has a tensor of shape (1,), or (k,) with one value per class
    if isinstance(beta, Tensor):
        sizes.append(len(beta))
    return max((size for size in sizes if size > 1), default=None)
