"""Time and memory of finding communities, and of approximate lists of neighbors, in large sets."""

from collections.abc import Callable
from functools import partial

import torch
from speed_measurements import Row, Sizes, cost_in_process
from torch import Tensor
from torch.nn import functional

from udmlss import ClusterPseudoLabeler
from udmlss.neighbors import approximate, nearest, neighbor_lists

NEIGHBORS = 20
QUERIES = 2000  # of the exact search
SPREAD = 24  # number of directions in which the items of all classes vary most


def lines_of_clustering(sizes: Sizes) -> list[Row]:
    """Cluster each set once with the default labeler, and search its neighbors, in new processes."""
    shapes = [(*sizes.communities, 60), (*sizes.many_communities, 1200)]
    return [row for n, d, limit in shapes for row in (_row_of_labeler(sizes, n, d, limit), _row_of_lists(sizes, n, d))]


def _row_of_labeler(sizes: Sizes, n: int, d: int, limit: int) -> Row:
    is_limited = (n, d) in {Sizes().communities, Sizes().many_communities}
    cost = cost_in_process(prepare_labeler, n, d, sizes.exact_up_to)
    note = f"search included; {cost.found}; memory beyond the embeddings {cost.mebibytes:.0f} MiB"
    measured, more = f"`ClusterPseudoLabeler()` of {n:,} x {d}", {"mebibytes": cost.mebibytes}
    return Row(
        "clustering",
        measured,
        f"{limit} s",
        [cost.seconds],
        [limit],
        aim=1.0 if is_limited else None,
        note=note,
        more=more,
    )


def _row_of_lists(sizes: Sizes, n: int, d: int) -> Row:
    lists = cost_in_process(prepare_lists, n, d, sizes.exact_up_to)
    exact = cost_in_process(prepare_exact, n, d)
    n_queries = min(n, QUERIES)
    note = f"recall {lists.found:.3f}; time of the exact search from {n_queries:,} queries; memory beyond the "
    note += f"embeddings {lists.mebibytes:.0f} MiB"
    measured, baseline = f"`neighbor_lists` of {n:,} x {d}, {NEIGHBORS} neighbors", "the exact search"
    return Row("clustering", measured, baseline, [lists.seconds], [exact.seconds * n / n_queries], note=note)


def prepare_labeler(n: int, d: int, exact_up_to: int) -> Callable[[], str]:
    return partial(_label, unequal_classes(n, d), exact_up_to)


def _label(embeddings: Tensor, exact_up_to: int) -> str:
    _search_exactly_up_to(exact_up_to)
    return f"{ClusterPseudoLabeler().label(embeddings).n_clusters:,} communities"


def prepare_lists(n: int, d: int, exact_up_to: int) -> Callable[[], float]:
    return partial(_recall, unequal_classes(n, d), exact_up_to)


def _recall(embeddings: Tensor, exact_up_to: int) -> float:
    _search_exactly_up_to(exact_up_to)
    return neighbor_lists(embeddings, NEIGHBORS).recall


def prepare_exact(n: int, d: int) -> Callable[[], object]:
    embeddings = unequal_classes(n, d)
    queries = embeddings[torch.randperm(n)[:QUERIES]]
    return partial(nearest, embeddings, NEIGHBORS, queries=queries)


def _search_exactly_up_to(multiplications: int) -> None:
    """Set the size of sets up to which the search is exact, so that small sets show the approximate search, too."""
    if multiplications >= 0:
        approximate._EXACT = multiplications  # noqa: SLF001 (no setting of the library)


def unequal_classes(n: int, d: int, spread: float = 0.7) -> Tensor:
    """Return unit vectors of about n / 60 classes of unequal sizes, in families of similar classes.

    Half of the variance within classes is in a few directions, as in embeddings of photographs.

    Args:
        n: Number of vectors.
        d: Number of dimensions.
        spread: Standard deviation within classes; their centers have length 1. The classes overlap from about 1 on.
    """
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    n_classes = max(2, n // 60)
    families = functional.normalize(normal(max(1, n_classes // 20), d))
    family = torch.randint(len(families), (n_classes,), generator=generator)
    centers = functional.normalize(families[family] + 0.8 * functional.normalize(normal(n_classes, d)))
    directions = torch.linalg.qr(normal(d, min(d, SPREAD)))[0].T
    sizes = 0.1 + 0.9 * torch.rand(n_classes, generator=generator)
    classes = sizes.multinomial(n, replacement=True, generator=generator)
    vectors = torch.empty(n, d)
    for rows in torch.arange(n).split(2**16):
        within = normal(len(rows), d) / d**0.5 + normal(len(rows), len(directions)) @ directions / SPREAD**0.5
        vectors[rows] = functional.normalize(centers[classes[rows]] + spread * within)
    return vectors
