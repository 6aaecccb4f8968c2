"""Measure lists of neighbors and communities: time, peak memory, and the recall of approximate lists.

    python benchmarks/speed_neighbors.py                          # 60,000 x 512 and 1,000,000 x 128
    python benchmarks/speed_neighbors.py --shapes 5000x64 --exact-up-to 0

Each line is measured in a new process. The time of exact search is that of a sample of the queries, multiplied. The
program reads /proc, so it needs Linux.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
from speed_measurements import CLOCK_VARIABLE, CLOCKS, cost_in_process
from torch import Tensor
from torch.nn import functional

from udmlss.clustering.map_equation import map_equation_communities
from udmlss.neighbors import approximate, nearest, neighbor_lists, shared_neighbor_graph

NEIGHBORS = 20
QUERIES = 2000  # of the exact search
SPREAD = 24  # number of directions in which the items of all classes vary most


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", default="60000x512,1000000x128", help="comma-separated shapes (default: %(default)s)"
    )
    parser.add_argument("--exact-up-to", type=int, help="multiplications up to which lists are exact")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: measure processor time, on a shared machine"
    )
    args = parser.parse_args(arguments)
    os.environ[CLOCK_VARIABLE] = args.clock
    print("| embeddings | measured | seconds | MiB | found |\n| --- | --- | --- | --- | --- |")
    for shape in args.shapes.split(","):
        n, d = map(int, shape.split("x"))
        print_lines(n, d, args.exact_up_to)


def print_lines(n: int, d: int, exact_up_to: int | None) -> None:
    n_queries = min(n, QUERIES)
    for name, prepare, factor in [
        (f"exact search, from {n_queries:,} queries", prepare_exact, n / n_queries),
        ("neighbor_lists", prepare_lists, 1),
        ("neighbor_lists, graph and communities", prepare_communities, 1),
    ]:
        cost = cost_in_process(prepare, n, d, exact_up_to)
        line = f"| {n:,} x {d} | {name} | {factor * cost.seconds:.1f} | {cost.mebibytes:.0f} | {cost.found} |"
        print(line, flush=True)


def prepare_exact(n: int, d: int, _: int | None) -> Callable[[], str]:
    embeddings = unequal_classes(n, d)
    queries = embeddings[torch.randperm(n)[:QUERIES]]
    return lambda: f"{len(nearest(embeddings, NEIGHBORS, queries=queries)[1]):,} lists"


def prepare_lists(n: int, d: int, exact_up_to: int | None) -> Callable[[], str]:
    return partial(_lists, unequal_classes(n, d), exact_up_to)


def _lists(embeddings: Tensor, exact_up_to: int | None) -> str:
    return f"recall {_search(embeddings, exact_up_to).recall:.3f}"


def prepare_communities(n: int, d: int, exact_up_to: int | None) -> Callable[[], str]:
    return partial(_communities, unequal_classes(n, d), exact_up_to)


def _communities(embeddings: Tensor, exact_up_to: int | None) -> str:
    found = map_equation_communities(shared_neighbor_graph(_search(embeddings, exact_up_to).indices))
    return f"{found.max() + 1:,} communities"


def _search(embeddings: Tensor, exact_up_to: int | None) -> approximate.NeighborLists:
    if exact_up_to is not None:
        approximate._EXACT = exact_up_to  # noqa: SLF001 (so that small sets show the approximate search, too)
    return neighbor_lists(embeddings, NEIGHBORS)


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


if __name__ == "__main__":
    main()
