"""Near-duplicates: items of a set, or of two sets, whose embeddings are nearly equal."""

from typing import overload

import numpy as np
import torch
from jaxtyping import Float32
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from udmlss._checks import check_number, value_error
from udmlss._chunks import PAIRS
from udmlss.neighbors.approximate import find_lists
from udmlss.neighbors.backends import search_on
from udmlss.search.index import SearchIndex
from udmlss.search.rows import Embeddings, as_unit_rows

_NEIGHBORS = 10  # length of the lists of neighbors; if all in a list are near-duplicates, the item may have more
_ROUNDING = 1e-6  # of the similarity of equal embeddings


@overload
def near_duplicates(embeddings: Embeddings, threshold: float = 0.95, *, other: None = None) -> list[list[int]]: ...
@overload
def near_duplicates(
    embeddings: Embeddings, threshold: float = 0.95, *, other: Embeddings
) -> list[tuple[int, int, float]]: ...


def near_duplicates(
    embeddings: Embeddings, threshold: float = 0.95, *, other: Embeddings | None = None
) -> list[list[int]] | list[tuple[int, int, float]]:
    """Find groups of near-duplicates in a set, or near-duplicates of one set in another.

    The search is exact for small sets and approximate for large ones: that of `neighbor_lists` within a set, and that
    of `SearchIndex` for another set. A tensor on a GPU is searched there. Within a set, items with ten or more
    near-duplicates are also compared with each other, on the CPU, in a time that grows with the square of their number.
    Memory grows with the number of items.

    Args:
        embeddings: Embeddings (n, d) of any length, a tensor or an array of NumPy.
        threshold: Smallest cosine similarity of near-duplicates, in -1..1. A good value depends on the model, so
            inspect some pairs.
        other: Embeddings (m, d) of a second set, such as test images that must not be among the training images. None
            searches within the first set.

    Returns:
        Without `other`, groups of at least two indices. Two items are in one group if a chain of similar pairs
        connects them. Indices are sorted, and groups by their first index. With `other`, one tuple (index in
        `embeddings`, index in `other`, similarity) for each item of `other` that has a near-duplicate, with the most
        similar item of `embeddings`, in descending order of similarity.

    Raises:
        ValueError: `threshold` is outside -1..1, embeddings are empty or not finite, or `other` has another dimension.
        TypeError: Embeddings are not floating-point.

    Example:
        >>> from udmlss.search import near_duplicates
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.0, -1.0]])
        >>> near_duplicates(rows)
        [[0, 2]]
        >>> near_duplicates(rows, other=torch.tensor([[0.0, 2.0]]))
        [(1, 0, 1.0)]
    """
    check_number("threshold", threshold, -1, 1)
    rows = as_unit_rows(embeddings)
    device = embeddings.device if isinstance(embeddings, Tensor) else "cpu"
    if other is None:
        return _groups(rows, float(threshold), device)
    others = as_unit_rows(other, "other")
    if others.shape[1] != rows.shape[1]:
        rule, found = "`embeddings` and `other` must have the same dimension", f"{rows.shape[1]} and {others.shape[1]}"
        raise value_error(rule, found, "Use one model for both")
    ids, similarities = SearchIndex(rows, device=device).search(others, k=1)
    order = np.argsort(-similarities[:, 0], kind="stable")
    order = order[similarities[order, 0] >= threshold - _ROUNDING]
    return list(zip(ids[order, 0].tolist(), order.tolist(), similarities[order, 0].tolist(), strict=True))


def _groups(rows: Float32[Tensor, "n d"], threshold: float, device: torch.device | str) -> list[list[int]]:
    n = len(rows)
    if n == 1:
        return []
    with search_on(torch.device(device)):
        lists = find_lists(rows, min(_NEIGHBORS, n - 1))
    is_similar = lists.similarities >= threshold
    first, ranks = is_similar.nonzero(as_tuple=True)
    edges = (first.numpy(), lists.indices[first, ranks].numpy())
    graph = coo_array((np.ones(len(first), dtype=np.int8), edges), shape=(n, n))
    labels = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    full = is_similar[:, -1].nonzero().flatten()  # every pair that is missing from the lists is a pair of these items
    labels = _joined(rows[full], labels[full], threshold, labels)
    order = labels.argsort(stable=True)
    groups = [group.tolist() for group in order.split(labels.bincount().tolist()) if len(group) > 1]
    return sorted(groups)


def _joined(rows: Float32[Tensor, "m d"], groups: Tensor, threshold: float, labels: Tensor) -> Tensor:
    """Join the groups that any two of these rows connect, and return the new label of each item.

    Each iteration starts from the rows of one group, joins the groups that are similar to it, and then those that are
    similar to the joined groups, so that every group is compared once.
    """
    root = torch.arange(int(labels.max()) + 1)
    is_left = torch.ones(len(rows), dtype=torch.bool)
    while is_left.any():
        if 2 * int(is_left.sum()) < len(rows):  # seldom, because it copies the rows
            rows, groups, is_left = rows[is_left], groups[is_left], is_left[is_left]
        target = groups[is_left.int().argmax()]  # of the first row that is left
        waiting = (is_left & (groups == target)).nonzero().flatten()
        is_left[waiting] = False
        while len(waiting) and is_left.any():
            part = waiting[: max(1, PAIRS // len(rows))]
            waiting = waiting[len(part) :]
            is_similar = is_left & ((rows[part] @ rows.T).amax(dim=0) >= threshold)
            if is_similar.any():
                similar = groups[is_similar].unique()
                root[similar] = target
                members = (is_left & torch.isin(groups, similar)).nonzero().flatten()
                waiting = torch.cat([waiting, members])
                is_left[members] = False
    return root[labels]
