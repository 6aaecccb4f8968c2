"""Neighbors by cosine similarity, for sets of any size."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from udmlss._checks import check_embeddings, check_integer, check_number, value_error
from udmlss._chunks import row_slices, with_float64
from udmlss.neighbors.backends import Neighbors, full_precision, most_similar
from udmlss.neighbors.exact import EXTRA_CANDIDATES, exact_order, unit_vectors

_QUERIES_PER_CHUNK = 2**13
_NEIGHBORS_PER_CHUNK = 2**24  # 128 MiB of int64
_LARGEST_DEVIATION = 1e-3  # of the length of a normalized vector from 1, by rounding


def nearest(embeddings: Float[Tensor, "n d"], k: int, *, queries: Float[Tensor, "q d"] | None = None) -> Neighbors:
    """Find the k most similar items of each query, by cosine similarity and exactly.

    The search runs in float32. Similarities that float32 cannot distinguish are compared in float64, so that the
    order is right also in a narrow cone, and at any scale of the embeddings. In a narrow cone this takes several times
    as long.

    Args:
        embeddings: Embeddings of the items that are searched, of any length, in memory or mapped from a file.
        k: Number of neighbors.
        queries: Embeddings of the queries. None searches with each item for its neighbors among the others: an item
            is never its own neighbor.

    Returns:
        The cosine similarities (q k) in descending order, and the indices (q k) of the items.

    Raises:
        TypeError: `k` is not an integer, or embeddings are not floating-point tensors.
        ValueError: `k` is below 1 or above the number of items that a query is compared with, the queries have another
            dimension than the items, or embeddings are not finite.

    Example:
        >>> similarities, indices = nearest(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), k=1)
        >>> indices.flatten()
        tensor([1, 2, 1])
    """
    check_embeddings(embeddings)
    check_queries(queries, embeddings)
    check_integer("k", k, 1)
    check_k(k, len(embeddings) - (queries is None))
    return search(embeddings, int(k), queries)


def check_k(k: int, n_items: int) -> None:
    """Raise ValueError if k exceeds the number of items that each query is compared with."""
    if k > n_items:
        rule = f"`k={k}` must not exceed the number of items that a query is compared with"
        raise value_error(rule, n_items, "Lower `k`, or add items")


def search(embeddings: Float[Tensor, "n d"], k: int, queries: Float[Tensor, "q d"] | None = None) -> Neighbors:
    """Return what `nearest` returns, for checked arguments."""
    n, device = len(embeddings if queries is None else queries), embeddings.device
    similarities = torch.empty(n, k, dtype=torch.float32, device=device)
    indices = torch.empty(n, k, dtype=torch.int64, device=device)
    for chunk, found in search_in_chunks(embeddings, k, queries):
        similarities[chunk], indices[chunk] = found
    return similarities, indices


def search_in_chunks(
    embeddings: Float[Tensor, "n d"],
    k: int,
    queries: Float[Tensor, "q d"] | None,
    classes: tuple[Int64[Tensor, " n"], Int64[Tensor, " q"]] | None = None,
    *,
    part: int = 0,
    n_parts: int = 1,
) -> Iterator[tuple[slice, Neighbors]]:
    """Yield slices of the queries with their k nearest items.

    The items are read in parts, so that memory does not grow with their number.

    Args:
        embeddings: Checked embeddings, as in `nearest`.
        k: Number of neighbors.
        queries: Checked queries, or None.
        classes: Classes of the items and of the queries, if only the positions of items of the same class matter. This
            saves time: the exact order of other items is not computed.
        part: Number of the part of the queries that is searched.
        n_parts: Number of parts that the queries are divided into.
    """
    device, items = embeddings.device, with_float64(embeddings.detach())
    all_queries = items if queries is None else queries.detach().to(items.device)
    parts = list(row_slices(items))
    n_nearest = k + (queries is None)  # an item is its own nearest neighbor
    step = max(1, min(_QUERIES_PER_CHUNK, _NEIGHBORS_PER_CHUNK // k))
    with full_precision(items.device):
        gallery = unit_length(items) if len(parts) == 1 else None  # normalize once if there is a single part
    for begin in range(0, len(all_queries), step)[part::n_parts]:
        chunk = slice(begin, min(begin + step, len(all_queries)))
        with full_precision(items.device):
            directions, best = unit_length(all_queries[chunk]), None
            for some in parts:
                rows = unit_length(items[some]) if gallery is None else gallery
                best = _merge(best, directions, rows, some.start, n_nearest + EXTRA_CANDIDATES)
            if best is None:
                continue
            is_relevant = None if classes is None else classes[0][best[1]] == classes[1][chunk].unsqueeze(1)
            best = exact_order(*best, all_queries[chunk], items, n_nearest, is_relevant=is_relevant)
            own = torch.arange(begin, chunk.stop, device=items.device)
            similarities, indices = best if queries is not None else without_self(best, own)
        yield chunk, (similarities.to(device), indices.to(device))


def check_queries(queries: Tensor | None, embeddings: Tensor, name: str = "queries") -> None:
    """Raise an error unless queries are None or a finite floating-point tensor of the embeddings' dimension."""
    if queries is None:
        return
    check_embeddings(queries, name)
    if queries.shape[1] != embeddings.shape[1]:
        found = f"{queries.shape[1]} and {embeddings.shape[1]} dimensions"
        raise value_error(f"`{name}` and `embeddings` must have the same dimension", found, "Use one model for both")


def without_self(neighbors: tuple[Tensor, Tensor], own: Int64[Tensor, " q"]) -> Neighbors:
    """Remove each query from its own neighbors; where exact duplicates displaced it, remove the last neighbor."""
    similarities, indices = neighbors
    others = indices != own.unsqueeze(1)
    others[:, -1] &= ~others.all(dim=1)
    return similarities[others].view(len(indices), -1), indices[others].view(len(indices), -1)


def average_with_neighbors(embeddings: Float[Tensor, "n d"], n_neighbors: int) -> Float32[Tensor, "n d"]:
    """Average each embedding with its nearest neighbors, weighted by rank, at unit length.

    The weight falls linearly from 1 for the embedding itself, so that two embeddings that are each other's neighbors
    do not become equal.

    Args:
        embeddings: Embeddings of any length.
        n_neighbors: Number of neighbors.

    Returns:
        The averages, at unit length.

    Raises:
        ValueError: `n_neighbors` is not below the number of embeddings.

    References:
        Three things everyone should know to improve object retrieval. Arandjelovic, Zisserman. 2012.
        https://doi.org/10.1109/CVPR.2012.6248018
    """
    check_embeddings(embeddings)
    check_integer("n_neighbors", n_neighbors, 1)
    check_n_neighbors("n_neighbors", n_neighbors, len(embeddings))
    return averages_of_lists(embeddings, search(embeddings, int(n_neighbors))[1])


def averages_of_lists(embeddings: Float[Tensor, "n d"], indices: Int64[Tensor, "n k"]) -> Float32[Tensor, "n d"]:
    """Return what `average_with_neighbors` returns, for checked embeddings and their nearest neighbors."""
    directions = unit_length(with_float64(embeddings.detach()))
    averages = torch.empty_like(directions)
    for rows in row_slices(directions):
        total = directions[rows].clone()
        for rank, neighbors in enumerate(indices[rows].to(directions.device).T, start=1):
            total += (1 - rank / (indices.shape[1] + 1)) * directions[neighbors]
        averages[rows] = functional.normalize(total)
    return averages.to(embeddings.device)


def check_n_neighbors(name: str, n_neighbors: int, n: int) -> None:
    """Raise ValueError if there are not more images than neighbors of each."""
    if n_neighbors >= n:
        raise value_error(f"`{name}={n_neighbors}` must be below the number of images", n, "Lower it, or add images")


def pair_with_neighbors(features: Float[Tensor, "n f"], *, fraction: float = 0.5, seed: int = 0) -> Int64[Tensor, " n"]:
    """Sample for each image the image of its second view: its nearest neighbor or the image itself.

    Call it once per epoch, with new features and another seed.

    Args:
        features: Features or embeddings of all images, of any length: similarity is the cosine.
        fraction: Probability of the nearest neighbor, in 0..1. The default is the published value.
        seed: Seed of the sampling.

    Returns:
        For each image the index of its nearest neighbor or its own index.

    Raises:
        ValueError: There are fewer than two images, features are not finite, or `fraction` is outside 0..1.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> pair_with_neighbors(features, fraction=1)
        tensor([1, 0, 3, 2])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091
    """
    check_number("fraction", fraction, 0, 1)
    check_integer("seed", seed, 0)
    check_embeddings(features, "features")
    if len(features) < 2:  # noqa: PLR2004
        raise value_error("`features` must have at least two rows", len(features), "Add images")
    own = torch.arange(len(features), device=features.device)
    take_neighbor = torch.rand(len(features), generator=torch.Generator().manual_seed(int(seed))) < float(fraction)
    _, indices = search(features, 1)
    return torch.where(take_neighbor.to(features.device), indices[:, 0], own)


def unit_length(rows: Float[Tensor, "c d"]) -> Float32[Tensor, "c d"]:
    """Normalize rows of any floating type and of any length in float32; rows of zeros stay zeros."""
    directions = functional.normalize(rows.float())
    # the squares of large or small numbers overflow or underflow in float32
    failed = ((directions.norm(dim=1) - 1).abs() < _LARGEST_DEVIATION).logical_not().nonzero().flatten()
    if len(failed):
        directions[failed] = unit_vectors(rows[failed])[:, :-1].float()
    return directions


def _merge(
    best: tuple[Tensor, Tensor] | None,
    directions: Float32[Tensor, "q d"],
    rows: Float32[Tensor, "g d"],
    begin: int,
    k: int,
) -> Neighbors:
    """Return the k best of the neighbors so far and of further rows, whose indices count from `begin`."""
    similarities, indices = most_similar(directions, rows, min(k, len(rows)))
    indices += begin
    if best is None:
        return similarities, indices
    similarities = torch.cat([best[0], similarities], dim=1)
    indices = torch.cat([best[1], indices], dim=1)
    similarities, chosen = similarities.topk(min(k, similarities.shape[1]))
    return similarities, indices.gather(1, chosen)
