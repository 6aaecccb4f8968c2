"""The weights that a loss holds per cluster: how many, and how they follow the centroids."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import value_error
from udmlss.types import UsesClusterCenters

_BY_ROW = ("proxies",)  # (k d); all others hold a class in a column: (d k), or (d k*m) with m centres a class
_BY_COLUMN = ("W", "fc", "weight")


def check_fits(loss: nn.Module, n_clusters: int | None, dimension: int | None) -> None:
    """Refuse a loss that holds parameters for other clusters or other embeddings; None is not known, and fits."""
    for name, weight in _class_weights(loss):
        check_dimension(loss, weight.shape[1 if name in _BY_ROW else 0], dimension)
    if isinstance(loss, UsesClusterCenters):
        check_dimension(loss, loss.embedding_size, dimension)
    found = _class_count(loss)
    if None not in (found, n_clusters) and found != n_clusters:
        raise value_error(
            f"{type(loss).__name__} holds parameters for {found} clusters and needs as many in every round",
            n_clusters,
            f"Use ClusterPseudoLabeler({found}), build the loss for {n_clusters}, or take a loss without proxies",
        )


def check_dimension(loss: nn.Module, held: int, dimension: int | None) -> None:
    """Refuse embeddings of another dimension than the loss was built for; None is not known, and fits."""
    if dimension not in (None, held):
        raise value_error(
            f"{type(loss).__name__} was built for embeddings of {held} dimensions",
            dimension,
            f"Build it with embedding size {dimension}",
        )


def move_proxies(loss: nn.Module, centroids: Float[Tensor, "k d"]) -> None:
    """Turn the loss's class weights to the centroids: each class's mean direction becomes its centroid's.

    Directions are those from the mean of all centroids, as what all have in common tells none from another: the
    embeddings of a pretrained network lie in a narrow cone, and so would their centroids. Each class is rotated as a
    whole: lengths are kept, and so are the angles between several centres of one class.
    """
    apart = centroids - centroids.mean(dim=0)
    for name, weight in _class_weights(loss):
        rows = weight.detach() if name in _BY_ROW else weight.detach().T
        centres = rows.reshape(len(centroids), -1, rows.shape[1])
        mean = functional.normalize(functional.normalize(centres, dim=2).mean(dim=1, keepdim=True), dim=2)
        target = functional.normalize(apart.to(rows)).unsqueeze(1)
        moved = _turned(centres, mean, target).flatten(0, 1)
        with torch.no_grad():
            weight.copy_(moved if name in _BY_ROW else moved.T)


def _turned(
    centres: Float[Tensor, "k m d"], mean: Float[Tensor, "k 1 d"], target: Float[Tensor, "k 1 d"]
) -> Float[Tensor, "k m d"]:
    """Rotate each class by the smallest angle that takes mean to target; reflect it where that is over 90 degrees."""
    opposed = (mean * target).sum(dim=2, keepdim=True) < 0  # where mean + target may be rounding alone
    rotated = _mirrored(_mirrored(centres, mean), mean + target)
    return torch.where(opposed, _mirrored(centres, mean - target), rotated)


def _mirrored(centres: Float[Tensor, "k m d"], across: Float[Tensor, "k 1 d"]) -> Float[Tensor, "k m d"]:
    across = functional.normalize(across, dim=2)
    return centres - 2 * (centres * across).sum(dim=2, keepdim=True) * across


def _class_weights(loss: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the loss's own weights with one direction or more per class."""
    if isinstance(loss, BaseMetricLossFunction):
        for name, parameter in loss.named_parameters(recurse=False):
            if name in _BY_ROW + _BY_COLUMN:
                yield name, parameter


def _class_count(loss: nn.Module) -> int | None:
    if not isinstance(loss, BaseMetricLossFunction):
        return None
    count: int = getattr(loss, "num_classes", 0)  # some have none, and ProxyNCALoss has 0
    if count:
        return count
    sizes = [weight.shape[0 if name in _BY_ROW else 1] for name, weight in _class_weights(loss)]
    beta = getattr(loss, "beta", None)  # MarginLoss's, a parameter or a plain tensor, (1) or (k)
    if isinstance(beta, Tensor):
        sizes.append(len(beta))
    return max((size for size in sizes if size > 1), default=None)
