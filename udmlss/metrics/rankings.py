"""Scores of the results of a search."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from udmlss._checks import as_labels, check_distinct_items, check_indices, value_error
from udmlss.metrics.retrieval import Retrieval, mean_scores, plan_retrieval, summed_scores
from udmlss.types import Labels


def score_rankings(
    rankings: Int64[Tensor, "q m"],
    labels: Labels,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    *,
    query_labels: Labels | None = None,
) -> Retrieval:
    """Compute the scores of `retrieval` from the results of any search, such as one that re-ranks.

    Args:
        rankings: Positions in `labels` of the items that were found for each query, the most similar first, each item
            at most once. Without `query_labels`, row i is the ranking of item i, in which the item itself is ignored.
        labels: Class of each item; items with a negative label are ignored.
        ks: Numbers k of first items, one or several.
        query_labels: Class of each query. None if each item is a query.

    Raises:
        TypeError: Rankings, labels or `ks` are not integers.
        ValueError: A ranking has fewer items than the largest k, or than there are items of the class of its query, or
            has an item twice; a position is not among the labels; or no query has an item of its class.

    Example:
        >>> metrics.score_rankings(torch.tensor([[1, 2], [0, 2], [1, 0]]), labels=[0, 0, 1], ks=1).recall_at
        {1: 1.0}
    """
    n = len(as_labels(labels))
    check_indices(rankings, n, "rankings")
    rankings = rankings.cpu().long()
    n_queries = None if query_labels is None else len(rankings)
    plan = plan_retrieval(n, labels, ks, n_queries, query_labels)
    if query_labels is None and len(rankings) != n:
        remedy = "Rank the items for each of them, or pass `query_labels`"
        raise value_error("`rankings` must have one row per item", f"{len(rankings)} rows for {n} items", remedy)
    check_distinct_items(rankings, "A ranking")
    rankings = rankings[plan.query_has_class]
    is_ignored = ~plan.has_class[rankings]
    if query_labels is None:
        is_ignored |= rankings == plan.query_has_class.nonzero()
    n_needed = plan.n_relevant.clamp(min=max(plan.ks)).unsqueeze(1)
    n_ranked = (~is_ignored).sum(dim=1, keepdim=True)
    if (n_ranked < n_needed).any():
        worst = int((n_ranked - n_needed).argmin())
        row = int(plan.query_has_class.nonzero()[worst])
        rule = f"Row {row} of `rankings` must have at least {int(n_needed[worst])} items that are not ignored"
        raise value_error(rule, int(n_ranked[worst]), "Search for more items")
    order = is_ignored.byte().argsort(dim=1, stable=True)[:, : int(n_needed.max())]
    all_labels = torch.full((n,), -1).masked_scatter(plan.has_class, plan.labels)
    hits = (all_labels[rankings] == plan.query_labels.unsqueeze(1)).gather(1, order)
    return mean_scores(summed_scores(hits, plan.n_relevant.unsqueeze(1), plan.ks), plan)
