"""Exact order of nearest neighbors where products in float32 round their differences away."""

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from udmlss._chunks import PAIRS

EXTRA_CANDIDATES = 4  # neighbors beyond k, among which the k nearest are found although their order is rounded
_NUMBERS = 2**18  # largest number of elements of a tensor of differences: 2 MiB in float64, which a cache holds
_ORIGIN_ROWS = 256  # rows whose median is the origin of the products in float64
_GALLERY_ROWS = 2**13  # rows of the gallery that are converted to float64 at once

Exact = tuple[Float64[Tensor, "q k"], Int64[Tensor, "q k"]]


def exact_euclidean(queries: Float64[Tensor, "q d"], gallery: Float64[Tensor, "g d"], k: int) -> Exact:
    """Return the k smallest squared distances of each query, as sums of squared differences, and their rows.

    Products in float64 choose candidates by a lower bound of their distances. Where the bounds of the other rows do
    not exclude them, the query is compared with all rows.
    """
    n_candidates = min(k + EXTRA_CANDIDATES, len(gallery))
    origin = gallery[:: max(1, len(gallery) // _ORIGIN_ROWS)].median(dim=0).values
    centered = gallery - origin
    found = []
    for part in queries.split(max(1, PAIRS // len(gallery) // 4)):
        candidates, bounds = _candidates(part - origin, centered, n_candidates)
        distances, order = _squared_distances(part, gallery, candidates).sort(dim=1, stable=True)
        indices = candidates.gather(1, order)
        uncertain = (distances[:, k - 1] > bounds).nonzero().flatten()
        if n_candidates < len(gallery) and len(uncertain):
            distances[uncertain, :k], indices[uncertain, :k] = _compare_all(part[uncertain], gallery, k)
        found.append((distances[:, :k], indices[:, :k]))
    return torch.cat([distances for distances, _ in found]), torch.cat([indices for _, indices in found])


def _candidates(
    queries: Float64[Tensor, "q d"], gallery: Float64[Tensor, "g d"], n: int
) -> tuple[Int64[Tensor, "q n"], Float64[Tensor, " q"]]:
    """Return the rows with the n smallest lower bounds of their squared distance, and the largest of these bounds."""
    relative_error = 2**-51 * (2 + gallery.shape[1] ** 0.5)  # of the products, to squared norms
    halves = (1 - relative_error) / 2 * gallery.square().sum(dim=1)
    scores, candidates = torch.addmm(-halves, queries, gallery.T).topk(n)
    bounds = (1 - relative_error) * queries.square().sum(dim=1) - 2 * scores[:, -1]
    return candidates.sort(dim=1).values, bounds  # sorted, so that of equal distances the first row is the nearest


def _squared_distances(
    queries: Float64[Tensor, "q d"], gallery: Float64[Tensor, "g d"], candidates: Int64[Tensor, "q c"]
) -> Float64[Tensor, "q c"]:
    """Return the sums of squared differences of each query and its candidates."""
    n_queries = max(1, _NUMBERS // (candidates.shape[1] * gallery.shape[1]))
    parts = zip(queries.split(n_queries), candidates.split(n_queries), strict=True)
    return torch.cat([(gallery[indices] - part.unsqueeze(1)).square_().sum(dim=2) for part, indices in parts])


def _compare_all(queries: Float64[Tensor, "q d"], gallery: Float64[Tensor, "g d"], k: int) -> Exact:
    distances = torch.cdist(queries, gallery, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, indices = distances.topk(k, largest=False)
    return nearest.square(), indices


def unit_vectors(rows: Float[Tensor, "c d"]) -> Float64[Tensor, "c e"]:
    """Normalize rows in float64, with one more column that is 1 for a row of zeros and 0 for all others.

    The squared distance of two vectors is 2 - 2 times the cosine of the rows, which is 0 for a row of zeros.
    """
    tiny = torch.finfo(torch.float64).tiny
    if rows.dtype == torch.float64:  # squares of numbers of the other types neither overflow nor underflow in float64
        rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=tiny)
    vectors = functional.pad(rows.double(), (0, 1))
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    vectors /= norms.clamp(min=tiny)
    vectors[:, -1] = norms[:, 0] == 0
    return vectors


def exact_order(
    similarities: Float32[Tensor, "q c"],
    indices: Int64[Tensor, "q c"],
    queries: Float[Tensor, "q d"],
    embeddings: Float[Tensor, "n d"],
    k: int,
    *,
    is_relevant: Bool[Tensor, "q c"] | None = None,
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """Return the k most similar of the candidates of each query, in their exact order.

    Similarities that differ by less than rounding are computed again from differences in float64. Where the candidates
    may lack one of the k most similar rows, the query is searched again in float64.

    Args:
        similarities: Similarities in float32 of k or more candidates, in descending order.
        indices: Rows of the candidates.
        queries: Queries, of any length.
        embeddings: Rows that were searched, of any length.
        k: Number of neighbors.
        is_relevant: Whether each candidate has the class of its query, if only this matters: the order of candidates
            with the same value is then not computed again.
    """
    rounding = 2**-24 * (10 + 1.5 * queries.shape[1] ** 0.5)  # twice the largest error that was measured
    has_direction = queries.any(dim=1)  # all similarities of the other queries are 0
    ambiguous = _ambiguous(similarities, rounding, is_relevant) & has_direction.unsqueeze(1)
    highest_other = similarities[:, -1].double() - 1 + rounding  # of the rows that are not candidates
    negative = similarities.double() - 1  # minus half of the squared distance, which is exact near 0
    rows, columns = ambiguous.nonzero(as_tuple=True)
    if len(rows):
        negative[rows, columns] = _negative_half_squares(queries, embeddings, rows, indices[rows, columns])
        negative, order = negative.sort(dim=1, descending=True, stable=True)
        indices, ambiguous = indices.gather(1, order), ambiguous.gather(1, order)
        similarities = (1 + negative).float()
    n_candidates, indices, similarities = indices.shape[1], indices[:, :k], similarities[:, :k]
    if n_candidates == len(embeddings):
        return similarities, indices
    is_equal = ambiguous[:, k - 1] & (negative[:, k - 1] == 0)  # no other row can be nearer
    uncertain = ((negative[:, k - 1] < highest_other) & has_direction & ~is_equal).nonzero().flatten()
    if len(uncertain):
        squares, indices[uncertain] = _search_in_float64(queries[uncertain], embeddings, k)
        similarities[uncertain] = (1 - squares / 2).float()
    return similarities, indices


def _ambiguous(
    similarities: Float32[Tensor, "q c"], rounding: float, is_relevant: Bool[Tensor, "q c"] | None
) -> Bool[Tensor, "q c"]:
    """Return which candidates are in a chain of similarities that differ by less than rounding and matter."""
    is_distant = similarities[:, :-1] - similarities[:, 1:] >= rounding
    chains = functional.pad(is_distant.cumsum(dim=1), (1, 0))  # the number of the chain of each candidate
    sizes = torch.zeros_like(chains).scatter_add_(1, chains, torch.ones_like(chains))
    if is_relevant is None:
        return (sizes > 1).gather(1, chains)
    n_relevant = torch.zeros_like(chains).scatter_add_(1, chains, is_relevant.long())
    return ((n_relevant > 0) & (n_relevant < sizes)).gather(1, chains)


def _negative_half_squares(
    queries: Float[Tensor, "q d"],
    embeddings: Float[Tensor, "n d"],
    query_rows: Int64[Tensor, " p"],
    item_rows: Int64[Tensor, " p"],
) -> Float64[Tensor, " p"]:
    """Return minus half of the squared distance of the directions of each pair of a query and an item."""
    found, n_pairs = [], max(1, _NUMBERS // queries.shape[1])
    for own, items in zip(query_rows.split(n_pairs), item_rows.split(n_pairs), strict=True):
        used, positions = own.unique_consecutive(return_inverse=True)
        differences = unit_vectors(embeddings[items]) - unit_vectors(queries[used])[positions]
        found.append(differences.square_().sum(dim=1) / -2)
    return torch.cat(found)


def _search_in_float64(queries: Float[Tensor, "q d"], embeddings: Float[Tensor, "n d"], k: int) -> Exact:
    """Return the smallest squared distances of the directions of queries and embeddings, and the rows."""
    directions = unit_vectors(queries)
    distances = directions.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for begin in range(0, len(embeddings), _GALLERY_ROWS):
        rows = unit_vectors(embeddings[begin : begin + _GALLERY_ROWS])
        more, more_indices = exact_euclidean(directions, rows, min(k, len(rows)))
        distances, order = torch.cat([distances, more], dim=1).sort(dim=1, stable=True)
        indices = torch.cat([indices, more_indices + begin], dim=1).gather(1, order)[:, :k]
        distances = distances[:, :k]
    return distances, indices
