"""Time of queries in a search index, with the time and memory of building it and its recall."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from speed_communities import unequal_classes
from speed_measurements import Row, Sizes, cost_in_process, seconds
from torch import Tensor

from udmlss.search import SearchIndex, index

SPREADS = {"clustered": 0.7, "noisy": 2.0}  # of the classes; noisy classes overlap, so that there are no clusters
SINGLE = 100  # queries that are searched one by one
K = 10


class Measured(NamedTuple):
    """Measurements after an index was built.

    Args:
        sample_recall: Recall that the index reports.
        recall: Recall of new queries of the same distribution.
        seconds: Time of all new queries in one call.
        exact_seconds: The same of an index with `target_recall=1`.
        single_seconds: Time of a call with one query.
    """

    sample_recall: float
    recall: float
    seconds: float
    exact_seconds: float
    single_seconds: float


def lines_of_search(sizes: Sizes) -> list[Row]:
    """Compare searches in an index with exact searches, for each set in a new process."""
    shapes = (sizes.search, sizes.large_search)
    return [_row(sizes, n, d, kind) for n, d in shapes for kind in SPREADS]


def _row(sizes: Sizes, n: int, d: int, kind: str) -> Row:
    cost = cost_in_process(prepare, n, d, SPREADS[kind], sizes.queries, sizes.exact_up_to)
    found = Measured(*cost.found)
    note = (
        f"spread {SPREADS[kind]}; recall@{K} {found.recall:.3f}, by the index {found.sample_recall:.3f}; "
        f"{sizes.queries / found.seconds:,.0f} and {sizes.queries / found.exact_seconds:,.0f} queries/s, one query "
        f"{1000 * found.single_seconds:.2f} ms; built in {cost.seconds:.1f} s with {cost.mebibytes:.0f} MiB"
    )
    measured = f"{sizes.queries} queries in a `SearchIndex` of {n:,} x {d}, {kind}"
    return Row("search", measured, "an exact index", [found.seconds], [found.exact_seconds], note=note)


def prepare(n: int, d: int, spread: float, n_queries: int, exact_up_to: int) -> Callable[[], object]:
    """Return a function that builds an index and returns the function that measures it."""
    if exact_up_to >= 0:
        index._EXACT = exact_up_to  # noqa: SLF001 (so that small sets show the approximate search, too)
    rows = unequal_classes(n + n_queries, d, spread)
    return partial(build, rows[:n], rows[n:])


def build(rows: Tensor, queries: Tensor) -> Callable[[], Measured]:
    """Build the index, whose cost is measured."""
    return partial(measure, SearchIndex(rows), rows, queries)


def measure(built: SearchIndex, rows: Tensor, queries: Tensor) -> Measured:
    """Measure searches in an index, against those in an exact one."""
    exact = SearchIndex(rows, target_recall=1)
    nearest, _ = exact.search(queries, K)
    found, _ = built.search(queries, K)
    hits = [len(np.intersect1d(one, other)) for one, other in zip(found, nearest, strict=True)]
    batch, exact_batch = (seconds(partial(each.search, queries, K)) for each in (built, exact))
    singles = queries[:SINGLE]
    single = seconds(lambda: [built.search(query.unsqueeze(0), K) for query in singles]) / len(singles)
    return Measured(built.recall, sum(hits) / (K * len(queries)), batch, exact_batch, single)
