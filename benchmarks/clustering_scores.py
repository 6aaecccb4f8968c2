"""Scores of clusterings by the classes of their items."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score
from sklearn.metrics.cluster import contingency_matrix

from udmlss import metrics

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Scores of a clustering.

    Args:
        n_clusters: Number of clusters of at least two items, since a cluster of one item is never sampled.
        ami: Adjusted mutual information with the classes, where each unassigned item is a cluster of its own.
        assigned_ami: Adjusted mutual information of the assigned items.
        pair_f1: F1 score of "two items are in the same cluster" as a prediction of "they are of the same class".
        precision: Probability that two items of a cluster are of the same class, as the mean over the clusters. It is
            the precision of the positive pairs of `PseudoLabelSampler`, which samples clusters equally often.
        unassigned: Fraction of unassigned items.
    """

    n_clusters: int
    ami: float
    assigned_ami: float
    pair_f1: float
    precision: float
    unassigned: float


def score(classes: Labels, clusters: Labels) -> Scores:
    """Score a clustering, in which -1 means unassigned."""
    completed = with_singletons(clusters)
    counts = contingency_matrix(classes, completed, sparse=True).tocsc()
    sizes, class_sizes = (np.asarray(counts.sum(axis=axis)).ravel() for axis in (0, 1))
    same_class = np.asarray(counts.multiply(counts - (counts > 0)).sum(axis=0)).ravel()  # ordered pairs by cluster
    pairs, class_pairs = (of * (of - 1) for of in (sizes, class_sizes))
    return Scores(
        n_clusters=int((sizes > 1).sum()),
        ami=metrics.ami(classes, completed),
        assigned_ami=metrics.ami(classes, clusters) if (clusters >= 0).any() else 0.0,
        pair_f1=2 * float(same_class.sum() / max(1, pairs.sum() + class_pairs.sum())),
        precision=float((same_class[sizes > 1] / pairs[sizes > 1]).mean()) if (sizes > 1).any() else 0.0,
        unassigned=float((clusters < 0).mean()),
    )


def with_singletons(clusters: Labels) -> Labels:
    """Return the clusters, numbered from 0 without gaps, where each unassigned item is a cluster of its own."""
    alone = clusters < 0
    numbers = np.where(alone, clusters.max() + np.cumsum(alone) + 1, clusters)
    return np.asarray(np.unique(numbers, return_inverse=True)[1], dtype=np.int64)


def join_nearest(graph: csr_array, clusters: Labels) -> Labels:
    """Assign each unassigned item to the cluster with the largest sum of weights, if it has an edge to any."""
    n, n_clusters = len(clusters), int(clusters.max()) + 1
    assigned = np.flatnonzero(clusters >= 0)
    if not len(assigned):
        return clusters
    members = csr_array((np.ones(len(assigned)), (assigned, clusters[assigned])), shape=(n, n_clusters))
    alone = np.flatnonzero(clusters < 0)
    weights = (graph[alone] @ members).toarray()
    joined = clusters.copy()
    joined[alone] = np.where(weights.max(axis=1) > 0, weights.argmax(axis=1), -1)
    return joined


def wrong_label_auc(classes: Labels, clusters: Labels, reliability: NDArray[np.floating]) -> float | None:
    """Return the area under the ROC curve of finding wrong labels by their low reliability.

    A label is wrong if the class of its item is not the most frequent one of its cluster. Unassigned items are ignored.
    Returns None if no label is wrong, or all are.
    """
    assigned = clusters >= 0
    classes, clusters = classes[assigned], np.unique(clusters[assigned], return_inverse=True)[1]
    majority = contingency_matrix(clusters, classes).argmax(axis=1)
    is_wrong = np.unique(classes, return_inverse=True)[1] != majority[clusters]
    if is_wrong.all() or not is_wrong.any():
        return None
    return float(roc_auc_score(is_wrong, -reliability[assigned]))
