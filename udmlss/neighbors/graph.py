"""Sparse graphs of nearest neighbors."""

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array, vstack
from torch import Tensor

_ROWS = 20_000  # rows of a sparse product that are computed at once


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

    Example:
        >>> shared_neighbor_graph(torch.tensor([[1], [0], [1]])).toarray().round(2)
        array([[0.  , 1.  , 0.  ],
               [1.  , 0.  , 0.33],
               [0.  , 0.33, 0.  ]])

    References:
        Clustering Using a Similarity Measure Based on Shared Near Neighbors. Jarvis, Patrick. 1973.
        https://doi.org/10.1109/T-C.1973.223640
    """
    n, k = indices.shape
    lists = np.concatenate([np.arange(n)[:, None], indices.numpy(force=True)], axis=1)
    starts = np.arange(n + 1) * (k + 1)
    member = csr_array((np.ones(n * (k + 1), dtype=np.float32), lists.ravel(), starts), shape=(n, n))
    edges = _without_diagonal(((member + member.T) > 0).astype(np.float32).tocsr())
    transposed = member.T.tocsr()
    parts = [
        (member[begin : begin + _ROWS] @ transposed).multiply(edges[begin : begin + _ROWS]).tocsr()
        for begin in range(0, n, _ROWS)
    ]
    weights = csr_array(vstack(parts))
    weights.data = (weights.data / (2 * (k + 1) - weights.data)).astype(np.float64)
    return weights


def _without_diagonal(matrix: csr_array) -> csr_array:
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    return matrix
