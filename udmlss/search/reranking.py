"""Search-time neighbors: query expansion and k-reciprocal re-ranking."""

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from udmlss.neighbors import neighbor_lists
from udmlss.neighbors.backends import Neighbors
from udmlss.neighbors.reciprocal import (
    add_neighbors_of_neighbors,
    average_rows,
    half_length,
    lists_with_self,
    neighbor_weights,
    reciprocal,
)

CANDIDATES_PER_NEIGHBOR = 5  # number of re-ranked candidates; more of them do not change the first results
_POWER = 3  # alpha of the query expansion
_AVERAGED = 0.3  # k2 as a fraction of k1: 6 for the published 20
_COSINE = 0.3  # weight of the cosine in the re-ranked similarity


def expand_queries(
    queries: Float32[Tensor, "q d"],
    similarities: Float32[Tensor, "q m"],
    indices: Int64[Tensor, "q m"],
    rows: Float32[Tensor, "n d"],
) -> Float32[Tensor, "q d"]:
    """Add to each query its nearest rows, weighted by a power of their similarity, and normalize the sums."""
    weights, sums = similarities.clamp(min=0) ** _POWER, queries.clone()
    for weight, neighbors in zip(weights.T, indices.T, strict=True):
        sums += weight.unsqueeze(1) * rows[neighbors]
    return functional.normalize(sums)


class Reranker:
    """Orders found items by the k-reciprocal neighbors that they share with the query.

    The weighted k-reciprocal neighbors of each item are computed once, as by `k_reciprocal_similarity`. An item is a
    reciprocal neighbor of a query if it is among the nearest items of the query, and the query would be among the
    nearest neighbors of the item. Queries do not change the neighbors of the items or of each other.

    Args:
        rows: Embeddings of the items at unit length.
        n_neighbors: Number of neighbors in the lists that are compared, below the number of items.
    """

    def __init__(self, rows: Float32[Tensor, "n d"], n_neighbors: int) -> None:
        found, self._rows = neighbor_lists(rows, n_neighbors), rows
        lists, half_k1 = lists_with_self(found.indices), half_length(n_neighbors + 1)
        whole, self._half = reciprocal(lists), reciprocal(lists[:, :half_k1])
        self._n_neighbors, self._farthest = n_neighbors, found.similarities[:, -1].clone()
        self._weights = neighbor_weights(rows, add_neighbors_of_neighbors(whole, self._half))
        self._k2 = max(1, round(_AVERAGED * n_neighbors))
        self._averaged = average_rows(self._weights, lists[:, : self._k2])

    def rerank(
        self, queries: Float32[Tensor, "q d"], cosines: Float32[Tensor, "q c"], indices: Int64[Tensor, "q c"], k: int
    ) -> Neighbors:
        """Return the k best candidates, and 0.3 x cosine + 0.7 x Jaccard similarity.

        Args:
            queries: Queries at unit length.
            cosines: Similarities of the candidates of each query in descending order.
            indices: The candidates, at least `n_neighbors` of them.
            k: Number of candidates that are returned.
        """
        encoding = self._encode(queries, cosines, indices)
        shared = torch.from_numpy(self._jaccard(encoding, indices.numpy())).float()
        similarities, order = (_COSINE * cosines + (1 - _COSINE) * shared).topk(k)
        return similarities, indices.gather(1, order)

    def _encode(
        self, queries: Float32[Tensor, "q d"], cosines: Float32[Tensor, "q c"], indices: Int64[Tensor, "q c"]
    ) -> csr_array:
        """Return the weights (q, n) of the k-reciprocal neighbors of the queries."""
        n_queries, nearest = len(queries), indices[:, : self._n_neighbors]
        is_mutual = cosines[:, : self._n_neighbors] >= self._farthest[nearest]
        pairs = (is_mutual.nonzero()[:, 0].numpy(), nearest[is_mutual].numpy())
        neighbors = csr_array((np.ones(len(pairs[0])), pairs), shape=(n_queries, len(self._rows)))
        neighbors = add_neighbors_of_neighbors(neighbors, self._half)
        weights = neighbor_weights(self._rows, neighbors, queries)
        others = [self._weights[indices[:, number].numpy()] for number in range(self._k2 - 1)]
        return csr_array(sum(others, weights) / self._k2)

    def _jaccard(self, encoding: csr_array, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the Jaccard similarity of the weights of each query with those of its candidates."""
        of_query, found = np.zeros(len(self._rows)), np.zeros(candidates.shape)
        for number, items in enumerate(candidates):
            entries = slice(*encoding.indptr[number : number + 2])
            of_query[encoding.indices[entries]] = encoding.data[entries]
            rows = self._averaged[items]
            minima = csr_array((np.minimum(rows.data, of_query[rows.indices]), rows.indices, rows.indptr), rows.shape)
            shared = minima.sum(axis=1)
            found[number] = shared / (1 + encoding.data[entries].sum() - shared)
            of_query[encoding.indices[entries]] = 0
        return found
