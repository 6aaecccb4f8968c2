"""Sparse graphs of nearest neighbors."""

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from scipy.sparse import csr_array, triu
from torch import Tensor

from udmlss._checks import check_distinct_items, check_indices, value_error

_EDGES = 2**18  # edges whose lists are compared at once


def shared_neighbor_graph(indices: Int64[Tensor, "n k"]) -> csr_array:
    r"""Weight the edges between neighbors by the neighbors that they share.

    The edge between i and j, where j is in the list of i or i in the list of j, has the Jaccard index of both lists
    as its weight,

    $$w_{ij} = \frac{|N(i) \cap N(j)|}{|N(i) \cup N(j)|}$$

    where the list N(i) includes i. The weights do not depend on the scale of the similarities, so that they need no
    threshold. Memory grows with n x k.

    Args:
        indices: The k nearest neighbors of each item, without the item itself, as `nearest` returns them.

    Returns:
        A symmetric matrix (n, n) with an empty diagonal.

    Raises:
        TypeError: The lists are not a tensor of integers.
        ValueError: The lists are not 2-D, or an item is not among the n, or is in its own list.

    Example:
        >>> shared_neighbor_graph(torch.tensor([[1], [0], [1]])).toarray().round(2)
        array([[0.  , 1.  , 0.  ],
               [1.  , 0.  , 0.33],
               [0.  , 0.33, 0.  ]])

    References:
        Clustering Using a Similarity Measure Based on Shared Near Neighbors. Jarvis, Patrick. 1973.
        https://doi.org/10.1109/T-C.1973.223640
    """
    check_lists(indices)
    n, k = indices.shape
    neighbors = indices.numpy(force=True)
    member = csr_array((np.ones(n * k, dtype=np.int8), neighbors.ravel(), np.arange(n + 1) * k), shape=(n, n))
    edges = triu(member + member.T, k=1, format="coo")
    rows, columns = edges.coords
    lists = np.concatenate([np.arange(n)[:, None], neighbors], axis=1).astype(np.int32)
    parts = [slice(begin, begin + _EDGES) for begin in range(0, len(rows), _EDGES)]
    shared = np.concatenate([_n_shared(lists[rows[part]], lists[columns[part]]) for part in parts])
    weights = csr_array((shared / (2 * (k + 1) - shared), (rows, columns)), shape=(n, n))
    return (weights + weights.T).tocsr()


def check_lists(indices: Int64[Tensor, "n k"]) -> None:
    """Raise an error unless `indices` has the neighbors of each item without the item itself."""
    check_indices(indices)
    is_self = (indices == torch.arange(len(indices), device=indices.device).unsqueeze(1)).any(dim=1)
    if is_self.any():
        rule = "The list of an item must not include the item itself"
        found = f"item {int(is_self.int().argmax())} in its own list"
        raise value_error(rule, found, "Pass the indices of `nearest(embeddings, k)` without `queries`")
    check_distinct_items(indices, "A list")


def _n_shared(one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the number of items that two lists in the same row (m, k) share."""
    both = np.sort(np.concatenate([one, other], axis=1), axis=1)
    return np.asarray(np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1))
