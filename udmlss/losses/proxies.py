"""Proxies and classifier weights of metric losses, which follow the cluster centers."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64
from pytorch_metric_learning.losses import BaseMetricLossFunction, ManifoldLoss, MarginLoss
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from udmlss._checks import value_error
from udmlss.types import UsesClusterCenters

_ROW_WEIGHTS = ("proxies",)  # names of parameters (k, d), with one class per row
_COLUMN_WEIGHTS = ("W", "fc", "weight")  # names of parameters (d, k * m), with m columns per class


def check_fits(loss: nn.Module, n_clusters: int | None, dimension: int | None) -> None:
    """Raise ValueError if a loss cannot be used for these clusters or embeddings; None does not check a number.

    Class weights are resized to any number of clusters. The margins of `MarginLoss` are not.
    """
    for name, weight in _class_weights(loss):
        check_dimension(loss, weight.shape[1 - _class_axis(name)], dimension)
    if isinstance(loss, UsesClusterCenters):
        check_dimension(loss, loss.embedding_size, dimension)
    if n_clusters is not None:
        check_n_clusters(loss, n_clusters)


def check_n_clusters(loss: nn.Module, found: object) -> None:
    """Raise ValueError if a loss needs another number of clusters than was found."""
    beta = getattr(loss, "beta", None)  # MarginLoss has a tensor of shape (1,), or (k,) with one value per class
    expected = len(beta) if isinstance(loss, MarginLoss) and isinstance(beta, Tensor) else 1
    if expected > 1 and found != expected:
        raise value_error(
            f"MarginLoss has parameters for {expected} clusters and needs this number in every round",
            found,
            f"Use ClusterPseudoLabeler({expected}), or build the loss without `num_classes`",
        )


def check_dimension(loss: nn.Module, expected: int, dimension: int | None) -> None:
    """Raise ValueError if a loss was built for embeddings of another dimension; None does not check it."""
    if dimension not in (None, expected):
        raise value_error(
            f"{type(loss).__name__} was built for embeddings of {expected} dimensions",
            dimension,
            f"Build it with embedding size {dimension}",
        )


def missing_centers(loss: nn.Module, remedy: str) -> ValueError:
    """Return the error of a loss that has no cluster centers."""
    return value_error(f"{type(loss).__name__} needs the cluster centers", "None", remedy)


def check_label(loss: nn.Module, label: int) -> None:
    """Raise ValueError if a loss has class weights, but none for this label."""
    n_classes = _n_classes(loss)
    if n_classes is not None and label >= n_classes:
        raise value_error(
            f"`labels` must lie in 0..{n_classes - 1}, one class of {type(loss).__name__} for each, or be -1",
            label,
            "Call `start_round(pseudo_labels)` after every clustering",
        )


def match_proxies(
    loss: nn.Module,
    n_clusters: int,
    optimizer: Optimizer | None,
    *,
    previous_ids: Int64[Tensor, " k"] | None = None,
    may_be_trained: bool = False,
) -> None:
    """Select the class weights of a loss for new clusters, with their state in the optimizer.

    A cluster receives the weights of its previous id, and their state, such as the averages of Adam. Without previous
    ids, the first clusters receive those of the same number. The weights of new clusters are copies, which
    `move_proxies` rotates to their centers, and their state is zero.

    Raises:
        ValueError: The number of clusters changes, `optimizer` is None, and the weights have a gradient or
            `may_be_trained` is True.
    """
    n_classes = _n_classes(loss)
    if optimizer is not None:
        _drop_state_of_another_size(loss, optimizer)
    if n_classes is None:
        return
    previous = torch.arange(n_clusters) if previous_ids is None else previous_ids
    is_new = (previous < 0) | (previous >= n_classes)
    previous = torch.where(is_new, torch.arange(n_clusters) % n_classes, previous)
    if torch.equal(previous, torch.arange(n_classes)) and (optimizer is None or not is_new.any()):
        return
    for name, weight in _class_weights(loss):
        axis, size = _class_axis(name), weight.shape[_class_axis(name)]
        if (may_be_trained or weight.grad is not None) and optimizer is None:
            raise value_error(
                f"{type(loss).__name__} needs `optimizer` to change from {n_classes} to {n_clusters} clusters",
                "None",
                "Call start_round(pseudo_labels, optimizer)",
            )
        n_rows = size // n_classes  # per class
        rows = (previous[:, None] * n_rows + torch.arange(n_rows)).flatten().to(weight.device)
        new_rows = is_new.repeat_interleave(n_rows).nonzero().flatten().to(weight.device)
        state = {} if optimizer is None else optimizer.state.get(weight, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim == weight.ndim and value.shape[axis] == size:
                state[key] = value.index_select(axis, rows).index_fill(axis, new_rows, 0)
        weight.data = weight.data.index_select(axis, rows)
        weight.grad = None
    _set_n_classes(loss, n_clusters)


def _drop_state_of_another_size(loss: nn.Module, optimizer: Optimizer) -> None:
    """Remove the state of class weights that were loaded with another number of classes than the state has."""
    for _, weight in _class_weights(loss):
        tensors = [value for value in optimizer.state.get(weight, {}).values() if isinstance(value, Tensor)]
        if any(value.ndim == weight.ndim and value.shape != weight.shape for value in tensors):
            del optimizer.state[weight]


def resize_to_state(loss: nn.Module, prefix: str, state: Mapping[str, object]) -> None:
    """Resize the class weights of a loss to those of a state dict, which may be of another number of clusters."""
    n_classes = _n_classes(loss)
    for name, weight in _class_weights(loss):
        found, axis = state.get(prefix + name), _class_axis(name)
        if n_classes is not None and isinstance(found, Tensor) and found.ndim == weight.ndim:
            weight.grad = None  # it belongs to the weights before loading
            match_proxies(loss, found.shape[axis] * n_classes // weight.shape[axis], None)


def move_proxies(loss: nn.Module, centers: Float[Tensor, "k d"]) -> None:
    """Rotate the class weights of a loss to the cluster centers.

    The mean direction of a class's weights becomes the direction of its center from the mean of all centers. This
    mean is subtracted because embeddings of a pretrained network, and thus their centers, lie in a narrow cone. The
    weights of a class are rotated together, which preserves their lengths and the angles between them.
    """
    deviations = centers - centers.mean(dim=0)
    for name, weight in _class_weights(loss):
        rows = weight.detach() if _class_axis(name) == 0 else weight.detach().T
        vectors = rows.reshape(len(centers), -1, rows.shape[1])
        mean = functional.normalize(functional.normalize(vectors, dim=2).mean(dim=1, keepdim=True), dim=2)
        target = functional.normalize(deviations.to(rows)).unsqueeze(1)
        moved = _rotate(vectors, mean, target).flatten(0, 1)
        with torch.no_grad():
            weight.copy_(moved if _class_axis(name) == 0 else moved.T)


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
    # a loss of the user may have other parameters with these names
    if isinstance(loss, BaseMetricLossFunction) and (hasattr(loss, "num_classes") or isinstance(loss, ManifoldLoss)):
        for name, parameter in loss.named_parameters(recurse=False):
            if name in _ROW_WEIGHTS + _COLUMN_WEIGHTS:
                yield name, parameter


def _class_axis(name: str) -> int:
    return 0 if name in _ROW_WEIGHTS else 1


def _n_classes(loss: nn.Module) -> int | None:
    """Return the number of classes that a loss has weights for, or None if it has none."""
    sizes = [weight.shape[_class_axis(name)] for name, weight in _class_weights(loss)]
    count: int = getattr(loss, "num_classes", 0)  # not all losses have it, and ProxyNCALoss sets it to 0
    return (count or max(sizes)) if sizes else None


def _set_n_classes(loss: nn.Module, n_clusters: int) -> None:
    """Set the attributes of losses of PML that depend on the number of classes."""
    for name in ("num_classes", "K"):  # ManifoldLoss has the latter
        if getattr(loss, name, 0):
            setattr(loss, name, n_clusters)
    if isinstance(getattr(loss, "proxy_labels", None), Tensor):  # of ProxyNCALoss
        loss.proxy_labels = torch.arange(n_clusters)
