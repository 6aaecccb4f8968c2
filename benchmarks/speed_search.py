"""Measure a search index: time and memory of building it, recall, and queries per second.

    python benchmarks/speed_search.py                                  # 100,000 x 128 and 1,000,000 x 128, all cores
    python benchmarks/speed_search.py --threads 1 --clock processor    # on a shared machine
    python benchmarks/speed_search.py --shapes 5000x64 --queries 100 --approximate

The table is saved in benchmarks/results/search unless --shapes is given. Each line is measured in a new process. The
program reads /proc, so it needs Linux.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from runs import versions
from settings import ROOT
from speed_measurements import CLOCK_VARIABLE, CLOCKS, cost_in_process, seconds
from speed_neighbors import unequal_classes
from torch import Tensor

from udmlss.search import SearchIndex, index

SHAPES = "100000x128,1000000x128"
SPREADS = {"clustered": 0.7, "noisy": 2.0}  # of the classes; noisy classes overlap, so that there are no clusters
SINGLE = 100  # queries that are searched one by one
K = 10
COLUMNS = ("embeddings", "data", "built in", "memory", "recall of a sample", f"recall@{K}")
COLUMNS += ("queries/s", "one query", "exact search")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
EXPLANATION = f"""
clustered and noisy: made unit vectors of about n / 60 classes. The standard deviation within classes is
{SPREADS["clustered"]} and {SPREADS["noisy"]} of the length of their centers. Noisy classes overlap. memory: peak while
the index is built, in addition to the embeddings; the index's own copy of them is included. recall of a sample: as the
index reports it. recall@{K}: of new queries of the same distribution, which are searched in one call. one query: time
of a call with a single query. exact search: queries/s of an index with `target_recall=1`.
"""


class Measured(NamedTuple):
    """What is measured after an index was built."""

    sample_recall: float
    recall: float
    queries_per_second: float
    milliseconds: float
    exact_queries_per_second: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="comma-separated shapes (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="number of queries (default: %(default)s)")
    parser.add_argument("--approximate", action="store_true", help="do not search small sets exactly")
    parser.add_argument("--threads", type=int, help="number of threads (default: one per core)")
    parser.add_argument("--out", type=Path, help="folder of the table")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: measure processor time, with one thread"
    )
    args = parser.parse_args(arguments)
    os.environ[CLOCK_VARIABLE] = args.clock
    if args.threads is not None:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes that measure
    lines = [HEADER]
    print(HEADER)
    for shape in args.shapes.split(","):
        n, d = map(int, shape.split("x"))
        for kind in SPREADS:
            lines.append(measured_line(n, d, kind, args.queries, approximate=args.approximate))
            print(lines[-1], flush=True)
    out = ROOT / "benchmarks/results/search" if args.out is None and args.shapes == SHAPES else args.out
    if out is not None:
        given = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "benchmarks/speed_search.py", *given])
        source = f"`{command}` with {', '.join(f'{name} {value}' for name, value in versions().items())}.\n"
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text("\n".join([*lines, EXPLANATION, source]))


def measured_line(n: int, d: int, kind: str, n_queries: int, *, approximate: bool) -> str:
    """Return the line of the table for an index of n embeddings."""
    cost = cost_in_process(prepare, n, d, SPREADS[kind], n_queries, approximate)
    found = Measured(*cost.found)
    cells = [
        f"{n:,} x {d}",
        kind,
        f"{cost.seconds:.1f} s",
        f"{cost.mebibytes:.0f} MiB",
        f"{found.sample_recall:.3f}",
        f"{found.recall:.3f}",
        f"{found.queries_per_second:,.0f}",
        f"{found.milliseconds:.2f} ms",
        f"{found.exact_queries_per_second:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def prepare(n: int, d: int, spread: float, n_queries: int, approximate: bool) -> Callable[[], object]:  # noqa: FBT001 (a process passes arguments by position)
    """Return a function that builds an index and returns the function that measures it."""
    if approximate:
        index._EXACT = 0  # noqa: SLF001 (so that small sets show the approximate search, too)
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
    single = seconds(lambda: [built.search(query.unsqueeze(0), K) for query in queries[:SINGLE]])
    n_single = min(SINGLE, len(queries))
    n = len(queries)
    return Measured(built.recall, sum(hits) / (K * n), n / batch, 1000 * single / n_single, n / exact_batch)


if __name__ == "__main__":
    main()
