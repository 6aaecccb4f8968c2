"""Embeddings and true labels to scores; cosine similarity throughout, an item never its own neighbour."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from scipy.special import gammaln
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from udmlss._checks import as_labels, check_embeddings, value_error
from udmlss.neighbors.search import search_in_chunks


@dataclass(frozen=True)
class Retrieval:
    """The three retrieval scores of one search, shares in 0..1."""

    recall_at: dict[int, float]
    map_at_r: float
    r_precision: float


def recall_at_k(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Int[Tensor, " q"] | None = None,
) -> dict[int, float]:
    """Return for each k the share of queries with an item of their class among the k nearest.

    A query without any item of its class to find is not counted.

    Args:
        embeddings: The gallery, rows of any length: similarity is the cosine. Without `queries` each item is a query
            among the others; it is left out by its index, so that an exact duplicate still counts.
        labels: Class of each item.
        ks: How many nearest items to look at.
        queries: Queries apart from the gallery.
        query_labels: Class of each query.

    Returns:
        The share in 0..1 for each k.

    Raises:
        ValueError: A k larger than the gallery, shapes that do not fit, embeddings that are not finite, or no query
            with anything to find.

    Example:
        >>> recall_at_k(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]), ks=(1,))
        {1: 1.0}
    """
    return retrieval(embeddings, labels, ks, queries=queries, query_labels=query_labels).recall_at


def map_at_r(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Int[Tensor, " q"] | None = None,
) -> float:
    """Return the mean average precision at R, in 0..1; arguments and errors as in `recall_at_k`.

    For a query with R items of its class: the mean over ranks 1..R of the precision up to that rank, where the item
    at that rank is of the class, and 0 where it is not.

    References:
        A Metric Learning Reality Check. Musgrave, Belongie, Lim. 2020. https://arxiv.org/abs/2003.08505
    """
    return retrieval(embeddings, labels, queries=queries, query_labels=query_labels, ks=(1,)).map_at_r


def r_precision(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Int[Tensor, " q"] | None = None,
) -> float:
    """Return the mean share of a query's class among its R nearest, R items of the class being there to find.

    Arguments and errors as in `recall_at_k`.
    """
    return retrieval(embeddings, labels, queries=queries, query_labels=query_labels, ks=(1,)).r_precision


def nmi(labels: Int[Tensor, " n"], clusters: Int[Tensor, " n"]) -> float:
    """Return the normalised mutual information of classes and clusters, arithmetic mean, in 0..1.

    It rises with the number of clusters even by chance; `ami` does not.
    """
    _check_pair(labels, clusters)
    return float(normalized_mutual_info_score(labels.numpy(force=True), clusters.numpy(force=True)))


def ami(labels: Int[Tensor, " n"], clusters: Int[Tensor, " n"]) -> float:
    """Return the mutual information of classes and clusters adjusted for chance: 0 for chance, 1 for equality.

    References:
        Information Theoretic Measures for Clusterings Comparison. Vinh, Epps, Bailey. 2010.
        https://jmlr.org/papers/v11/vinh10a.html
    """
    _check_pair(labels, clusters)
    counts = contingency_matrix(labels.numpy(force=True), clusters.numpy(force=True), sparse=True)
    sizes = [each.unique(return_counts=True)[1].tolist() for each in (labels, clusters)]
    chance = _mutual_information_by_chance(*sizes)
    found = mutual_info_score(None, None, contingency=counts) - chance
    most = sum(map(entropy, sizes)) / 2 - chance
    return float(found / most) if abs(most) > np.finfo(float).eps else 1.0  # nothing is split, or everything in both


def _mutual_information_by_chance(sizes: list[int], others: list[int]) -> float:
    """Return the expected mutual information of two random groupings with groups of these sizes.

    Two groups share as many items as a hypergeometric draw does. That depends on their sizes alone, so each pair of
    sizes is looked at once, where scikit-learn looks at each pair of groups.
    """
    n, expected = sum(sizes), 0.0
    log_factorial = gammaln(np.arange(n + 1) + 1)
    for (a, n_a), (b, n_b) in product(Counter(sizes).items(), Counter(others).items()):
        shared = np.arange(max(1, a + b - n), min(a, b) + 1)
        log_ways = log_factorial[[a, b, n - a, n - b]].sum() - log_factorial[n]
        log_taken = sum(log_factorial[rest] for rest in (shared, a - shared, b - shared, n - a - b + shared))
        gain = shared / n * np.log(n * shared / (a * b))
        expected += n_a * n_b * float((gain * np.exp(log_ways - log_taken)).sum())
    return expected


def _check_pair(labels: Tensor, clusters: Tensor) -> None:
    as_labels(labels, len(labels))
    as_labels(clusters, len(labels), "clusters")


def retrieval(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Int[Tensor, " q"] | None = None,
) -> Retrieval:
    """Return `recall_at_k`, `map_at_r` and `r_precision` from one search; arguments and errors as in `recall_at_k`."""
    _check_retrieval(embeddings, labels, ks, queries, query_labels)
    device = embeddings.device
    labels = labels.to(device)
    asked = labels if query_labels is None else query_labels.to(device)
    to_find = _count_same(labels, asked) - int(queries is None)
    counted = int((to_find > 0).sum())
    if counted == 0:
        raise value_error("A query needs another item of its class", "none for any query", "Look at the labels")
    sums = torch.zeros(len(ks) + 2, dtype=torch.float64, device=device)
    for chunk, (_, indices) in search_in_chunks(embeddings, max(*ks, int(to_find.max())), queries):
        sums += _sums(labels[indices] == asked[chunk].unsqueeze(1), to_find[chunk].unsqueeze(1), ks)
    *recalls, average, precision = (sums / counted).tolist()
    return Retrieval(dict(zip(ks, recalls, strict=True)), average, precision)


def _sums(hits: Tensor, to_find: Int64[Tensor, "q 1"], ks: Sequence[int]) -> Float64[Tensor, " s"]:
    """Return the scores summed over queries: recall at each k, average precision, R-precision."""
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    within = hits & (ranks <= to_find)
    share = to_find.clamp(min=1).squeeze(1)
    average = (within.cumsum(dim=1) / ranks.double() * within).sum(dim=1) / share
    recalls = [hits[:, :k].any(dim=1).double() for k in ks]
    return torch.stack([*recalls, average, within.sum(dim=1) / share.double()]).sum(dim=1)


def _count_same(labels: Int[Tensor, " n"], asked: Int[Tensor, " q"]) -> Int64[Tensor, " q"]:
    """Return how many of the labels equal each label asked for."""
    ids: Tensor = torch.cat([labels, asked]).unique(return_inverse=True)[1]
    sizes: Tensor = ids[: len(labels)].bincount(minlength=int(ids.max()) + 1)
    return sizes[ids[len(labels) :]]


def _check_retrieval(
    embeddings: Tensor, labels: Tensor, ks: Sequence[int], queries: Tensor | None, query_labels: Tensor | None
) -> None:
    check_embeddings(embeddings)
    as_labels(labels, len(embeddings))
    if not ks or min(ks) < 1:
        raise value_error("`ks` must hold whole numbers of at least 1", list(ks), "Pass (1, 2, 4, 8), say")
    if (queries is None) != (query_labels is None):
        found = "`query_labels` alone" if queries is None else "`queries` alone"
        raise value_error("`queries` and `query_labels` go together", found, "Pass both, or neither to search one set")
    if queries is not None and query_labels is not None:
        check_embeddings(queries, "queries")
        as_labels(query_labels, len(queries), "query_labels")
        if queries.shape[1] != embeddings.shape[1]:
            found = f"{queries.shape[1]} and {embeddings.shape[1]} dimensions"
            raise value_error("`queries` and `embeddings` must have one dimension", found, "Embed both with one model")
