"""Nearest neighbors of queries before and after training."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from udmlss.neighbors.search import search, without_self


@dataclass(frozen=True, eq=False)
class QueryNeighbors:
    """The nearest neighbors of one query.

    Attributes:
        query: Row of the query.
        after: Rows of the nearest images after training, the nearest first.
        before: Rows of the nearest images before training; None if they are unknown.
    """

    query: int
    after: list[int]
    before: list[int] | None

    @property
    def gained(self) -> set[int]:
        """Rows that are neighbors only after training."""
        return set() if self.before is None else set(self.after) - set(self.before)

    @property
    def lost(self) -> set[int]:
        """Rows that are neighbors only before training."""
        return set() if self.before is None else set(self.before) - set(self.after)


def compare_neighbors(
    queries: Int64[Tensor, " q"],
    embeddings: Float[Tensor, "n d"],
    start_embeddings: Float[Tensor, "n e"] | None,
    n_neighbors: int,
) -> list[QueryNeighbors]:
    """Find the nearest neighbors of the queries among all images, by both embeddings."""
    if len(embeddings) == 1 or len(queries) == 0:
        return []
    k = min(n_neighbors, len(embeddings) - 1)
    after = _nearest(queries, embeddings, k)
    before = None if start_embeddings is None else _nearest(queries, start_embeddings, k)
    return [
        QueryNeighbors(query, after[number], None if before is None else before[number])
        for number, query in enumerate(queries.tolist())
    ]


def sample_rows(n: int, count: int, seed: int) -> Int64[Tensor, " _"]:
    """Return a sample of the rows 0..n-1 in ascending order; all of them if there are not more than `count`."""
    if n <= count:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def _nearest(queries: Int64[Tensor, " q"], embeddings: Float[Tensor, "n d"], k: int) -> list[list[int]]:
    rows = queries.to(embeddings.device)
    found = search(embeddings, k + 1, embeddings[rows])
    return without_self(found, rows)[1].tolist()
