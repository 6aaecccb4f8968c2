"""Cluster ids that are matched between rounds, and the agreement of two clusterings."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from scipy.sparse import coo_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from udmlss._checks import as_labels, value_error
from udmlss.types import Labels

_MAX_CLUSTERS = 2**24


def match_ids(labels: Labels, previous: Labels) -> Int64[Tensor, " n"]:
    """Renumber clusters so that each has the id of the previous cluster that it shares most images with.

    Clusters and previous clusters are matched one to one. The matching maximizes the number of images that remain in
    their cluster. If there are fewer clusters than before, previous ids of k or above are replaced by free ids below k.

    Args:
        labels: Cluster of each image in 0..k-1, or -1 for an unassigned image.
        previous: Cluster of each image in the previous round, likewise; the number of clusters may differ.

    Returns:
        The renumbered labels: the same clusters with ids in 0..k-1, and -1 for the same images.

    Raises:
        TypeError: Labels are not integers.
        ValueError: There are no labels, they differ in length, or a label is 2**24 or above.

    References:
        The Hungarian method for the assignment problem. Kuhn. 1955. https://doi.org/10.1002/nav.3800020109

    Example:
        >>> from udmlss.clustering import match_ids
        >>> match_ids([1, 1, 0, 0, -1], previous=[0, 0, 1, 1, 1])
        tensor([ 0,  0,  1,  1, -1])
    """
    return match_clusters(labels, previous)[0]


def match_clusters(labels: Labels, previous: Labels) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " k"]]:
    """Renumber clusters as `match_ids` does, and return also the previous id of each cluster, or -1 for a new one."""
    labels, previous = _as_tensors(labels, previous)
    k = int(labels.max()) + 1
    if k > _MAX_CLUSTERS:
        rule, remedy = f"`labels` must be below {_MAX_CLUSTERS}", "Renumber clusters by PseudoLabels.from_labels"
        raise value_error(rule, k - 1, remedy)
    both = (labels >= 0) & (previous >= 0)
    old_ids, old_labels = previous[both].unique(return_inverse=True)
    new, old = _match(labels[both], old_labels, k, len(old_ids))
    matched = np.full(k, -1)  # the previous id of each cluster
    matched[new] = old_ids.numpy()[old]
    ids = np.append(np.where(matched < k, matched, -1), -1)  # the last element is the id of -1
    is_free = ids[:k] < 0
    ids[:k][is_free] = np.setdiff1d(np.arange(k), ids)
    previous_ids = np.full(k, -1)
    previous_ids[ids[:k]] = matched
    return torch.from_numpy(ids)[labels], torch.from_numpy(previous_ids)


def agreement(labels: Labels, previous: Labels) -> float | None:
    """Compute the adjusted Rand index of two clusterings, over the images that are assigned in both.

    Unlike normalized mutual information, the index does not rise with the number of clusters.

    Args:
        labels: Cluster of each image, or -1 for an unassigned image.
        previous: Cluster of each image in the other clustering.

    Returns:
        The index: 1 for equal clusters, 0 for chance. None if fewer than two images are assigned in both.

    Raises:
        TypeError: Labels are not integers.
        ValueError: Labels differ in length.

    References:
        Comparing partitions. Hubert, Arabie. 1985. https://doi.org/10.1007/BF01908075

    Example:
        >>> from udmlss.clustering import agreement
        >>> agreement([1, 1, 0, 0, -1], previous=[0, 0, 1, 1, 1])
        1.0
    """
    labels, previous = _as_tensors(labels, previous)
    both = (labels >= 0) & (previous >= 0)
    if both.sum() < 2:  # noqa: PLR2004 (the index compares pairs)
        return None
    return float(adjusted_rand_score(previous[both].numpy(), labels[both].numpy()))


def _as_tensors(labels: Labels, previous: Labels) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Check two labelings of the same images, and return them with -1 for all negative labels."""
    checked = as_labels(labels).cpu().clamp(min=-1)
    return checked, as_labels(previous, len(checked), "previous").cpu().clamp(min=-1)


def _match(labels: Tensor, previous: Tensor, k: int, k_previous: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Match new ids to old ids that they share images with, by a sparse table of the pairs that share images."""
    pairs = (np.ones(len(labels)), (labels.numpy(), previous.numpy()))
    shared = coo_array(pairs, shape=(k, k_previous)).tocsr()
    shared.data += 1
    # the matching must include each new id, so that each has a column of its own with weight 1, which leaves it alone
    new, old = min_weight_full_bipartite_matching(hstack([shared, eye_array(k)], format="csr"), maximize=True)
    matched = old < shared.shape[1]
    return new[matched], old[matched]
