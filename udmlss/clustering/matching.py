"""Cluster ids matched between rounds, and the agreement of two clusterings."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

_TABLE = 2**24  # counts in the largest table that is filled out: 4,096 clusters by as many, 128 MiB


def match_ids(labels: Int64[Tensor, " n"], previous: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Rename clusters so that each keeps the id of the previous cluster it shares most images with.

    The renaming is the one that maximises the number of images whose id stays (Kuhn 1955, on the table of counts),
    so a change of label means a change of mind and not of name. Ids stay 0..k-1; -1 stays -1.
    """
    k, k_previous = int(labels.max()) + 1, int(previous.max()) + 1
    both = (labels >= 0) & (previous >= 0)
    matched = _match_in_table if k * k_previous <= _TABLE else _match_in_pairs
    new, old = matched(labels[both], previous[both], k, k_previous)
    ids = np.full(k + 1, -1)  # the last place is where -1 looks
    ids[new] = old
    ids[:k][ids[:k] < 0] = np.setdiff1d(np.arange(k), old)
    return torch.from_numpy(ids)[labels]


def _match_in_table(labels: Tensor, previous: Tensor, k: int, k_previous: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return pairs of a new and an old id below k that share images, no id in two, most images in all."""
    pairs = labels * k_previous + previous
    shared = pairs.bincount(minlength=k * k_previous).view(k, k_previous)[:, :k].numpy()
    new, old = linear_sum_assignment(shared, maximize=True)
    kept = shared[new, old] > 0
    return new[kept], old[kept]


def _match_in_pairs(labels: Tensor, previous: Tensor, k: int, k_previous: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what `_match_in_table` does from the pairs of ids that occur: a table of millions is mostly zeros."""
    pairs = (np.ones(len(labels)), (labels.numpy(), previous.numpy()))
    shared = coo_array(pairs, shape=(k, k_previous)).tocsr()[:, :k]
    shared.data += 1  # and 1 for staying alone, since the matching leaves no new id out
    new, old = min_weight_full_bipartite_matching(hstack([shared, eye_array(k)], format="csr"), maximize=True)
    kept = old < shared.shape[1]
    return new[kept], old[kept]


def agreement(labels: Int64[Tensor, " n"], previous: Int64[Tensor, " n"]) -> float | None:
    """Return the adjusted Rand index of two labelings over the images both have in a cluster.

    1 for equal clusters, 0 for what chance gives whatever the number of clusters (unlike NMI, which rises with it).
    None where both have fewer than two images in a cluster: then there is no pair to agree on.

    References:
        Comparing partitions. Hubert, Arabie. 1985. https://doi.org/10.1007/BF01908075
    """
    both = (labels >= 0) & (previous >= 0)
    if both.sum() < 2:  # noqa: PLR2004 (the index compares pairs)
        return None
    return float(adjusted_rand_score(previous[both].numpy(), labels[both].numpy()))
