"""Recall@k, MAP@R and R-precision of embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from udmlss._checks import as_labels, check_embeddings, check_integer, value_error
from udmlss._chunks import with_float64
from udmlss.neighbors.search import check_queries, search_in_chunks
from udmlss.types import Labels


@dataclass(frozen=True)
class Retrieval:
    """Retrieval scores of one search, all in 0..1.

    Attributes:
        recall_at: For each k the fraction of queries with an item of their class among the k nearest.
        map_at_r: Mean average precision at R.
        r_precision: Mean fraction of the R nearest items that have the class of the query.
    """

    recall_at: dict[int, float]
    map_at_r: float
    r_precision: float


def recall_at_k(
    embeddings: Float[Tensor, "n d"],
    labels: Labels,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Labels | None = None,
) -> dict[int, float]:
    """Compute recall@k: the fraction of queries with an item of their class among the k nearest.

    Similarity is the cosine. Queries whose class has no other item are ignored.

    Args:
        embeddings: Embeddings of the items that are searched, of any length.
        labels: Class of each item; items with a negative label are ignored.
        ks: Numbers k of nearest items, one or several.
        queries: Embeddings of the queries. None uses each item as a query that is searched among all other items.
            Exact duplicates count as other items.
        query_labels: Class of each query, likewise; required with `queries`.

    Returns:
        The recall in 0..1 for each k.

    Raises:
        TypeError: Labels or `ks` are not integers.
        ValueError: A k exceeds the number of items with a class that a query is compared with, shapes do not match,
            embeddings are not finite, or no query has an item of its class.

    Example:
        >>> metrics.recall_at_k(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), labels=[0, 0, 1], ks=1)
        {1: 1.0}
    """
    return retrieval(embeddings, labels, ks, queries=queries, query_labels=query_labels).recall_at


def map_at_r(
    embeddings: Float[Tensor, "n d"],
    labels: Labels,
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Labels | None = None,
) -> float:
    """Compute the mean average precision at R, in 0..1.

    For a query with R items of its class, it is the mean over the ranks 1..R of the precision up to that rank, where
    ranks with an item of another class count as 0. Arguments and errors are those of `recall_at_k`.

    References:
        A Metric Learning Reality Check. Musgrave, Belongie, Lim. 2020. https://arxiv.org/abs/2003.08505
    """
    return retrieval(embeddings, labels, ks=1, queries=queries, query_labels=query_labels).map_at_r


def r_precision(
    embeddings: Float[Tensor, "n d"],
    labels: Labels,
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Labels | None = None,
) -> float:
    """Compute the mean R-precision, in 0..1.

    For a query with R items of its class, it is the fraction of the R nearest items that have this class. Arguments
    and errors are those of `recall_at_k`.
    """
    return retrieval(embeddings, labels, ks=1, queries=queries, query_labels=query_labels).r_precision


def retrieval(
    embeddings: Float[Tensor, "n d"],
    labels: Labels,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    *,
    queries: Float[Tensor, "q d"] | None = None,
    query_labels: Labels | None = None,
) -> Retrieval:
    """Compute `recall_at_k`, `map_at_r` and `r_precision` with one search.

    Arguments and errors are those of `recall_at_k`.
    """
    check_embeddings(embeddings)
    check_queries(queries, embeddings)
    n_queries = None if queries is None else len(queries)
    return run_retrieval(embeddings, queries, plan_retrieval(len(embeddings), labels, ks, n_queries, query_labels))


def run_retrieval(
    embeddings: Float[Tensor, "n d"], queries: Float[Tensor, "q d"] | None, plan: "RetrievalPlan"
) -> Retrieval:
    """Return what `retrieval` returns, for checked arguments."""
    embeddings = with_float64(select_rows(embeddings, plan.has_class))
    queries = None if queries is None else select_rows(queries, plan.query_has_class)
    labels, query_labels, n_relevant = (
        each.to(embeddings.device) for each in (plan.labels, plan.query_labels, plan.n_relevant)
    )
    sums = torch.zeros(len(plan.ks) + 2, dtype=torch.float64)
    k = max(*plan.ks, int(n_relevant.max()))
    for chunk, (_, indices) in search_in_chunks(embeddings, k, queries, (labels, query_labels)):
        hits = labels[indices] == query_labels[chunk].unsqueeze(1)
        sums += summed_scores(hits, n_relevant[chunk].unsqueeze(1), plan.ks)
    return mean_scores(sums, plan)


def select_rows(matrix: Float[Tensor, "n d"], is_selected: Bool[Tensor, " n"]) -> Float[Tensor, "m d"]:
    """Return the selected rows of a matrix, which is not copied if all are selected."""
    return matrix if is_selected.all() else matrix[is_selected.to(matrix.device)]


@dataclass(frozen=True, eq=False)
class RetrievalPlan:
    """The checked labels and numbers of a retrieval, which do not depend on the embeddings.

    Attributes:
        has_class: Whether each item has a class; the others are ignored.
        query_has_class: Whether each query has a class; the others are ignored.
        labels: Class of each item that has one.
        query_labels: Class of each query that has one.
        n_relevant: Number R of items that have the class of each query, without the query itself.
        ks: The k of recall@k.
    """

    has_class: Bool[Tensor, " n"]
    query_has_class: Bool[Tensor, " q"]
    labels: Int64[Tensor, " m"]
    query_labels: Int64[Tensor, " r"]
    n_relevant: Int64[Tensor, " r"]
    ks: tuple[int, ...]


def plan_retrieval(
    n: int, labels: Labels, ks: int | Sequence[int], n_queries: int | None, query_labels: Labels | None
) -> RetrievalPlan:
    """Check the labels and the k of a retrieval among n items; `n_queries` is None if each item is a query."""
    if (n_queries is None) != (query_labels is None):
        found = "`queries`" if query_labels is None else "`query_labels`"
        remedy = "Pass both, or neither to search each item among the others"
        raise value_error("`queries` and `query_labels` must be given together", f"only {found}", remedy)
    given = as_labels(labels, n).cpu()
    given_queries = given if query_labels is None else as_labels(query_labels, n_queries, "query_labels").cpu()
    has_class, query_has_class = given >= 0, given_queries >= 0
    classes, queried = given[has_class], given_queries[query_has_class]
    n_relevant = _count_equal(classes, queried) - int(n_queries is None)
    if not n_relevant.any():
        rule, remedy = "At least one query must have an item of its class", "Check the labels"
        raise value_error(rule, f"none of {len(queried)} queries", remedy)
    listed = tuple(ks) if isinstance(ks, Iterable) else (ks,)
    if not listed:
        raise value_error("`ks` must hold at least one integer", ks, "Use (1, 2, 4, 8)")
    most = len(classes) - (n_queries is None)
    for k in listed:
        check_integer("ks", k, 1)
        if k > most:
            rule = f"`ks` must not exceed the number of items with a class that a query is compared with, {most}"
            raise value_error(rule, k, "Pass smaller numbers, such as `ks=1`, or add items")
    return RetrievalPlan(has_class, query_has_class, classes, queried, n_relevant, tuple(map(int, listed)))


def _count_equal(labels: Int64[Tensor, " n"], queried: Int64[Tensor, " q"]) -> Int64[Tensor, " q"]:
    """Return the number of labels that equal each queried label."""
    ids: Tensor = torch.cat([labels, queried]).unique(return_inverse=True)[1]
    sizes: Tensor = ids[: len(labels)].bincount(minlength=len(ids))
    return sizes[ids[len(labels) :]]


def summed_scores(hits: Tensor, n_relevant: Int64[Tensor, "q 1"], ks: Sequence[int]) -> Float64[Tensor, " s"]:
    """Return recall at each k, average precision and R-precision, each summed over the queries."""
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    relevant_hits = hits & (ranks <= n_relevant)
    r = n_relevant.clamp(min=1).squeeze(1)
    average_precision = (relevant_hits.cumsum(dim=1) / ranks.double() * relevant_hits).sum(dim=1) / r
    recalls = [hits[:, :k].any(dim=1).double() for k in ks]
    return torch.stack([*recalls, average_precision, relevant_hits.sum(dim=1) / r.double()]).sum(dim=1).cpu()


def mean_scores(sums: Float64[Tensor, " s"], plan: RetrievalPlan) -> Retrieval:
    """Return the mean over the queries that have an item of their class."""
    *recalls, average_precision, precision = (sums / int((plan.n_relevant > 0).sum())).tolist()
    return Retrieval(dict(zip(plan.ks, recalls, strict=True)), average_precision, precision)
