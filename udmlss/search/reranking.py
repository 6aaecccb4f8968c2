"""Search-time neighbors: query expansion and k-reciprocal re-ranking."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from udmlss.neighbors import k_reciprocal_similarity
from udmlss.neighbors.backends import Neighbors

CANDIDATES_PER_NEIGHBOR = 5  # number of re-ranked candidates; more of them do not change the first results
_POWER = 3  # alpha of the query expansion
_AVERAGED = 0.3  # k2 as a fraction of k1: 6 for the published 20
_COSINE = 0.3  # weight of the cosine in the re-ranked similarity
_NUMBERS = 2**22  # elements of the rows that are compared at once


def expand_queries(
    queries: Float32[Tensor, "q d"], similarities: Float32[Tensor, "q m"], neighbors: Float32[Tensor, "q m d"]
) -> Float32[Tensor, "q d"]:
    """Add to each query its neighbors, weighted by a power of their similarity, and normalize the sums."""
    weights = similarities.clamp(min=0) ** _POWER
    return functional.normalize(queries + (weights.unsqueeze(2) * neighbors).sum(dim=1))


def rerank(
    rows: Float32[Tensor, "n d"],
    queries: Float32[Tensor, "q d"],
    cosines: Float32[Tensor, "q c"],
    indices: Int64[Tensor, "q c"],
    *,
    n_neighbors: int,
    k: int,
) -> Neighbors:
    """Return the k best of the found candidates by the k-reciprocal neighbors that they share with the query.

    Neighbors are searched only within the set of a query and its candidates, so that time and memory do not grow with
    the number of rows.

    Args:
        rows: Unit rows that were searched.
        queries: Queries at unit length.
        cosines: Similarities of the candidates of each query.
        indices: Rows of the candidates.
        n_neighbors: Number of neighbors in the lists that are compared.
        k: Number of candidates that are returned.
    """
    step = max(1, _NUMBERS // (indices.shape[1] * max(rows.shape[1], indices.shape[1])))
    parts = zip(queries.split(step), indices.split(step), strict=True)
    shared = torch.cat([_shared_with_query(rows, *part, n_neighbors) for part in parts])
    similarities, order = (_COSINE * cosines + (1 - _COSINE) * shared).topk(k)
    return similarities, indices.gather(1, order)


def _shared_with_query(
    rows: Float32[Tensor, "n d"], queries: Float32[Tensor, "b d"], indices: Int64[Tensor, "b c"], n_neighbors: int
) -> Float32[Tensor, "b c"]:
    """Return the k-reciprocal similarity between each query and its candidates."""
    sets = torch.cat([queries.unsqueeze(1), rows[indices]], dim=1)
    n_queries, size, d = sets.shape
    n_neighbors = min(n_neighbors, size - 1)
    similarities = torch.bmm(sets, sets.mT)
    similarities.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # an item is not its own neighbor
    first = size * torch.arange(n_queries)  # row of each query if the sets follow each other
    lists = similarities.topk(n_neighbors).indices + first.view(-1, 1, 1)
    k2 = max(1, round(_AVERAGED * n_neighbors))
    shared = k_reciprocal_similarity(sets.view(-1, d), lists.view(-1, n_neighbors), k1=n_neighbors + 1, k2=k2)
    of_queries = shared[first.numpy()]  # the entries of a query are in the columns of its own set
    found = torch.zeros(n_queries, size)
    columns = torch.from_numpy(of_queries.tocoo().coords[1]).long()
    found[columns // size, columns % size] = torch.from_numpy(of_queries.tocoo().data).float()
    return found[:, 1:]
