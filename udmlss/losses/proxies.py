"""The weights that a loss holds per cluster: how many, and how they follow the centroids."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import refusal

_BY_ROW = ("proxies",)  # (k d); all others hold a class in a column: (d k), or (d k*m) with m centres a class
_BY_COLUMN = ("W", "fc", "weight")
_SCALAR = ("beta",)  # (k)


def check_fits(loss: nn.Module, n_clusters: int, dimension: int) -> None:
    """Refuse a loss of pytorch-metric-learning that holds parameters for other clusters or other embeddings."""
    for name, weight in _class_weights(loss):
        held = weight.shape[1 if name in _BY_ROW else 0]
        if held != dimension:
            raise refusal(
                f"{type(loss).__name__} was built for embeddings of {held} dimensions",
                dimension,
                f"Build it with embedding size {dimension}",
            )
    found = _class_count(loss)
    if found not in (None, n_clusters):
        raise refusal(
            f"{type(loss).__name__} holds parameters for {found} clusters and needs as many in every round",
            n_clusters,
            f"Use ClusterPseudoLabeler({found}), build the loss for {n_clusters}, or take a loss without proxies",
        )


def move_proxies(loss: nn.Module, centroids: Float[Tensor, "k d"]) -> None:
    """Turn the loss's class weights to the centroids: each class's mean direction becomes its centroid's.

    Lengths are kept, and so are the offsets between several centres of one class, so that they stay distinct.
    """
    for name, weight in _class_weights(loss):
        rows = weight.detach() if name in _BY_ROW else weight.detach().T
        lengths = rows.norm(dim=1, keepdim=True)
        directions = functional.normalize(rows).view(len(centroids), -1, rows.shape[1])
        offsets = directions - directions.mean(dim=1, keepdim=True)
        target = functional.normalize(centroids.to(rows)).unsqueeze(1) + offsets
        moved = functional.normalize(target.flatten(0, 1)) * lengths
        with torch.no_grad():
            weight.copy_(moved if name in _BY_ROW else moved.T)


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
    sizes = {
        **{name: weight.shape[0 if name in _BY_ROW else 1] for name, weight in _class_weights(loss)},
        **{name: len(weight) for name, weight in loss.named_parameters(recurse=False) if name in _SCALAR},
    }
    return max((size for size in sizes.values() if size > 1), default=None)
