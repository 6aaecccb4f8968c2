"""Reliability of pseudo-labels by the graph of nearest neighbors."""

import numpy as np
import torch
from jaxtyping import Float32
from scipy.sparse import csr_array
from torch import Tensor

from udmlss._checks import as_labels
from udmlss.types import Labels


def label_margins(similarities: csr_array, labels: Labels) -> Float32[Tensor, " n"]:
    r"""Compute how much more similar each item is to its own cluster than to any other cluster.

    The margin of item i with the label c is

    $$m_i = \frac{1}{|c| - 1} \sum_{j \in c} s_{ij} - \max_{c' \neq c} \frac{1}{|c'|} \sum_{j \in c'} s_{ij}$$

    where the first term is 0 for an item that is alone in its cluster. Wrong labels have low margins. Time and memory
    grow with the number of stored similarities.

    Args:
        similarities: Symmetric matrix (n, n) of similarities in 0..1 with an empty diagonal: the weights of
            `shared_neighbor_graph`, or `k_reciprocal_similarity`. Pairs that are not stored have the similarity 0.
        labels: Label of each item. A negative label means unassigned.

    Returns:
        The margins, in -1..1, on the CPU. NaN for unassigned items.

    Raises:
        ValueError: The number of labels is not that of the items.

    Example:
        >>> from udmlss.clustering import label_margins
        >>> from udmlss.neighbors import shared_neighbor_graph
        >>> graph = shared_neighbor_graph(torch.tensor([[1], [0], [3], [2]]))
        >>> label_margins(graph, [0, 0, 0, 1])
        tensor([ 0.5000,  0.5000, -1.0000, -0.3333])
    """
    found = as_labels(labels, similarities.shape[0]).numpy(force=True)
    rows = np.flatnonzero(found >= 0)
    clusters, own, sizes = np.unique(found[rows], return_inverse=True, return_counts=True)
    members = csr_array((np.ones(len(rows)), (rows, own)), shape=(len(found), len(clusters)))
    sums = (similarities[rows] @ members).tocsr()
    owners = np.repeat(np.arange(len(rows)), np.diff(sums.indptr))
    is_own = sums.indices == own[owners]
    margins = np.full(len(found), np.nan, dtype=np.float32)
    inside = np.bincount(owners[is_own], sums.data[is_own], len(rows)) / np.maximum(sizes[own] - 1, 1)
    outside = np.zeros(len(rows))
    np.maximum.at(outside, owners[~is_own], sums.data[~is_own] / sizes[sums.indices[~is_own]])
    margins[rows] = inside - outside
    return torch.from_numpy(margins)
