"""A labeler that unassigns images whose cluster depends on the granularity of the clustering, as SpCL does.

A module of published.py, not a program.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udmlss import ClusterPseudoLabeler, PseudoLabels

QUANTILE = 0.9  # of the loose distances of the first round; clusters above it are unreliable


class SelfPacedLabeler:
    """Pseudo-labels from a clustering, without the images whose clusters differ in a tighter and a looser clustering.

    The distance of an image between two clusterings is the Jaccard distance of its two clusters. An image remains in
    its cluster under two conditions: its distance to the tight clustering is the smallest in its cluster, and the
    smallest distance of its cluster to the loose clustering is at most the 0.9 quantile of the first round.

    Args:
        clusterers: Three clusterers with scikit-learn's `fit_predict`, from many small clusters to few large ones. The
            second one finds the clusters.
        own_classes: Whether each image without a cluster is a class of its own. Otherwise its label is -1.

    References:
        Self-paced Contrastive Learning with Hybrid Memory for Domain Adaptive Object Re-ID. Ge et al. 2020.
        https://arxiv.org/abs/2006.02713
    """

    def __init__(self, clusterers: Sequence[Any], *, own_classes: bool = True) -> None:
        self.tight, self.middle, self.loose = clusterers
        self.own_classes = own_classes
        self.threshold: float | None = None
        self.labeler = ClusterPseudoLabeler(clusterer=self.reliable_labels)  # which matches ids between rounds

    def label(self, embeddings: Tensor) -> PseudoLabels:
        return self.labeler.label(embeddings)

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "labeler": self.labeler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold = state["threshold"]
        self.labeler.load_state_dict(state["labeler"])

    def reliable_labels(self, embeddings: Tensor) -> Tensor:
        rows = embeddings.to("cpu", torch.float32).numpy()
        found = [torch.as_tensor(each.fit_predict(rows)) for each in (self.tight, self.middle, self.loose)]
        tight, labels, loose = map(separate, found)
        tight_distances = jaccard_distances(labels, tight)
        loose_distances = smallest(jaccard_distances(labels, loose), labels)
        distances = loose_distances[labels.bincount() > 1].sort().values
        if self.threshold is None and len(distances):
            self.threshold = float(distances[min(len(distances) - 1, round(QUANTILE * len(distances)))])
        limit = torch.inf if self.threshold is None else self.threshold
        is_tight = tight_distances <= smallest(tight_distances, labels)[labels]
        is_separate = loose_distances[labels] <= limit
        reliable = torch.where(is_tight & is_separate & (found[1] >= 0), labels, -1)
        return separate(reliable) if self.own_classes else reliable


def separate(labels: Tensor) -> Tensor:
    """Give each image without a cluster a cluster of its own."""
    alone = labels < 0
    own = torch.arange(int(alone.sum())) + labels.max() + 1
    return labels.masked_scatter(alone, own.to(labels))


def jaccard_distances(labels: Tensor, others: Tensor) -> Tensor:
    """Return 1 - intersection / union of the clusters of each image in two clusterings."""
    pairs, sizes = torch.stack([labels, others], dim=1).unique(dim=0, return_inverse=True, return_counts=True)[1:]
    intersection = sizes[pairs]
    union = labels.bincount()[labels] + others.bincount()[others] - intersection
    return 1 - intersection / union


def smallest(values: Tensor, labels: Tensor) -> Tensor:
    """Return the smallest value of each cluster."""
    return torch.ones(int(labels.max()) + 1).scatter_reduce(0, labels, values, "amin")
