"""Groups of images whose embeddings are almost equal."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from udmlss.neighbors.approximate import find_lists
from udmlss.report.neighbor_changes import sample_rows

_SEARCHED = 100_000  # largest number of images that are compared
_NEIGHBORS = 3


@dataclass(frozen=True, eq=False)
class DuplicateGroups:
    """Groups of near-duplicates.

    Attributes:
        groups: Rows of each group, the largest group first.
        n_searched: Number of images that were compared; None if the groups were given.
    """

    groups: list[list[int]]
    n_searched: int | None


def find_groups(embeddings: Float[Tensor, "n d"], threshold: float, seed: int) -> DuplicateGroups:
    """Return the groups of images that are connected by pairs of at least this cosine similarity.

    Each image is compared with its 3 nearest neighbors. If there are more than 100,000 images, a sample
    is searched.
    """
    rows = sample_rows(len(embeddings), _SEARCHED, seed)
    n = len(rows)
    if n == 1:
        return DuplicateGroups([], n)
    searched = embeddings if n == len(embeddings) else embeddings[rows.to(embeddings.device)]
    lists = find_lists(searched.detach(), min(_NEIGHBORS, n - 1), seed=seed)
    first, position = (lists.similarities >= threshold).nonzero(as_tuple=True)
    pairs = torch.stack([first, lists.indices[first, position]]).numpy(force=True)
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(n, n))
    components = connected_components(graph, directed=False)[1]
    members = np.flatnonzero(np.bincount(components)[components] > 1)
    groups: dict[int, list[int]] = {}
    for member in members.tolist():
        groups.setdefault(int(components[member]), []).append(int(rows[member]))
    return DuplicateGroups(sorted(groups.values(), key=len, reverse=True), n)
