"""Similarity of items by the k-reciprocal neighbors that they share."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, vstack
from torch import Tensor

from udmlss._checks import check_embeddings, check_integer, value_error
from udmlss._chunks import with_float64
from udmlss.neighbors.graph import check_lists
from udmlss.neighbors.search import unit_length

_NUMBERS = 2**22  # products, or minima, that are computed at once
_LEAST_SHARED = 2 / 3  # of the neighbors of a neighbor, for them to be added


def k_reciprocal_similarity(
    embeddings: Float[Tensor, "n d"], indices: Int64[Tensor, "n k"], *, k1: int = 30, k2: int = 6
) -> csr_array:
    r"""Compute the Jaccard index of the weighted k-reciprocal neighbors of all pairs of items that share any.

    1 minus this is the k-reciprocal Jaccard distance of unsupervised re-identification. The k-reciprocal neighbors of
    i are the items of its list of neighbors whose lists include i. Those of a neighbor at half the length are added
    if i shares more than two thirds of them. Neighbor j has the weight $\exp(-\|x_i - x_j\|^2)$ with unit vectors x,
    divided by the sum of the weights of i, and the weights are averaged over the `k2` nearest items:

    $$s_{ij} = \frac{\sum_l \min(v_{il}, v_{jl})}{\sum_l \max(v_{il}, v_{jl})}$$

    Memory grows with n and with the number of items with which an item shares neighbors.

    Args:
        embeddings: Embeddings of any length.
        indices: The nearest neighbors of each item, without the item itself, as `neighbor_lists` returns them.
        k1: Length of the lists of neighbors, in which each item is the first, at most k + 1.
        k2: Number of nearest items, including the item itself, that weights are averaged over; 1 does not average.

    Returns:
        A symmetric matrix (n, n) of similarities in 0..1 with an empty diagonal.

    Raises:
        TypeError: The lists are not a tensor of integers.
        ValueError: `k1` is below 2, `k2` is below 1, the lists are too short for them, or an item is not among the n
            or is in its own list.

    Example:
        >>> from udmlss.neighbors import k_reciprocal_similarity, neighbor_lists
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> k_reciprocal_similarity(rows, neighbor_lists(rows, 1).indices, k1=2, k2=1).toarray().round(2)
        array([[0.  , 0.99, 0.  , 0.  ],
               [0.99, 0.  , 0.  , 0.  ],
               [0.  , 0.  , 0.  , 0.99],
               [0.  , 0.  , 0.99, 0.  ]])

    References:
        Re-ranking Person Re-identification with k-reciprocal Encoding. Zhong et al. 2017.
        https://arxiv.org/abs/1701.08398. The lengths of the lists are those of the code of Self-paced Contrastive
        Learning, Ge et al. 2020. https://arxiv.org/abs/2006.02713
    """
    check_embeddings(embeddings)
    check_integer("k1", k1, 2)
    check_integer("k2", k2, 1)
    check_lists(indices)
    if len(indices) != len(embeddings):
        found = f"{len(indices)} lists of {len(embeddings)} items"
        raise value_error("`indices` must have one list per item", found, "Search for the neighbors of all items")
    for name, k in (("k1", k1), ("k2", k2)):
        if k > indices.shape[1] + 1:
            rule = f"`{name}={k}` must not exceed the number of neighbors + 1"
            raise value_error(rule, indices.shape[1] + 1, f"Lower `{name}`, or search for more neighbors")
    lists = lists_with_self(indices)
    whole, half = (reciprocal(lists[:, :k]) for k in (k1, half_length(k1)))
    encoding = neighbor_weights(with_float64(embeddings.detach()), add_neighbors_of_neighbors(whole, half))
    encoding = average_rows(encoding, lists[:, :k2])
    encoding.sort_indices()  # so that both similarities of a pair are sums in the same order
    return _jaccard(encoding)


def lists_with_self(indices: Int64[Tensor, "n k"]) -> NDArray[np.int64]:
    """Return the lists of neighbors with the item itself in front."""
    return np.concatenate([np.arange(len(indices))[:, None], indices.numpy(force=True)], axis=1)


def half_length(k1: int) -> int:
    """Return the length of the lists of neighbors whose own neighbors are added."""
    return round(k1 / 2) + 1


def _membership(lists: NDArray[np.int64]) -> csr_array:
    n, k = lists.shape
    return csr_array((np.ones(n * k), lists.ravel(), np.arange(n + 1) * k), shape=(n, n))


def reciprocal(lists: NDArray[np.int64]) -> csr_array:
    """Return a symmetric matrix of ones where each of two items is in the list of the other."""
    members = _membership(lists)
    return csr_array(members.multiply(members.T))


def add_neighbors_of_neighbors(whole: csr_array, half: csr_array) -> csr_array:
    """Add to the reciprocal neighbors (q, n) those (n, n) of each neighbor that shares most of them."""
    shared = (whole @ half).multiply(whole).tocoo()  # of item i and the half list of its neighbor c
    is_added = shared.data > _LEAST_SHARED * half.sum(axis=0)[shared.coords[1]]
    added = csr_array((shared.data[is_added], tuple(axis[is_added] for axis in shared.coords)), shape=shared.shape)
    return csr_array(whole + added @ half)


def average_rows(matrix: csr_array, lists: NDArray[np.int64]) -> csr_array:
    """Return the mean of the listed rows of a matrix, for each list."""
    k = lists.shape[1]
    return matrix if k == 1 else csr_array(_membership(lists) @ matrix / k)


def neighbor_weights(
    embeddings: Float[Tensor, "n d"], neighbors: csr_array, queries: Float[Tensor, "q d"] | None = None
) -> csr_array:
    """Return the weights (q, n) of the neighbors of each query, whose sum is 1; None queries all items."""
    queries = embeddings if queries is None else queries
    rows, columns = (torch.from_numpy(axis).long().to(embeddings.device) for axis in neighbors.tocoo().coords)
    step = max(1, _NUMBERS // embeddings.shape[1])
    parts = zip(rows.split(step), columns.split(step), strict=True)
    cosines = torch.cat([(_directions(queries, one) * _directions(embeddings, two)).sum(dim=1) for one, two in parts])
    exponentials = np.exp(2 * cosines.double().numpy(force=True) - 2)
    weights = csr_array((exponentials, neighbors.indices, neighbors.indptr), shape=neighbors.shape)
    weights.data /= np.repeat(weights.sum(axis=1), np.diff(weights.indptr))
    return weights


def _directions(embeddings: Float[Tensor, "n d"], rows: Int64[Tensor, " c"]) -> Float[Tensor, "c d"]:
    return unit_length(embeddings[rows])


def _jaccard(encoding: csr_array) -> csr_array:
    """Return the Jaccard index of each two rows of weights that sum to 1, for rows with a common column."""
    n = encoding.shape[0]
    inverted = encoding.T.tocsr()
    sizes = np.diff(inverted.indptr)
    n_minima = np.concatenate([[0], np.cumsum(sizes[encoding.indices])])[encoding.indptr]
    begins = np.unique(np.searchsorted(n_minima, np.arange(0, n_minima[-1], _NUMBERS)))
    begins = begins[begins < n]
    ends, identity = [*begins[1:], n], eye_array(n, format="csr")
    parts = [_jaccard_of(slice(*rows), encoding, inverted, identity) for rows in zip(begins, ends, strict=True)]
    return csr_array(vstack(parts))


def _jaccard_of(rows: slice, encoding: csr_array, inverted: csr_array, identity: csr_array) -> csr_array:
    part = encoding[rows]
    counts = np.diff(inverted.indptr)[part.indices]
    ends = np.cumsum(counts)
    entries = np.arange(ends[-1]) + np.repeat(inverted.indptr[part.indices] - ends + counts, counts)
    minima = np.minimum(np.repeat(part.data, counts), inverted.data[entries])
    starts = np.concatenate([[0], ends])[part.indptr]
    shared = csr_array((minima, inverted.indices[entries], starts), shape=part.shape) @ identity  # adds duplicates
    shared.data /= 2 - shared.data
    is_self = shared.indices == np.repeat(np.arange(rows.start, rows.stop), np.diff(shared.indptr))
    shared.data[is_self] = 0
    shared.eliminate_zeros()
    return shared
