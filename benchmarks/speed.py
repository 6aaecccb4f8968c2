"""How fast the library is, each line as a ratio to something measured beside it.

    python benchmarks/speed.py                              # all lines, some 20 minutes on two idle cores
    python benchmarks/speed.py --only sampler,evaluate      # some; the table keeps the others
    python benchmarks/speed.py --only evaluate --rows 60502 --evaluations 1
    python benchmarks/speed.py --quick                      # sizes at which nothing is told but that it runs

The table and the plot go to benchmarks/results/speed, with --quick only where --out says; each line as soon as it is
measured. It reads /proc, so it needs Linux.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from runs import versions
from settings import ROOT
from speed_cpu import lines_of_cpu
from speed_measuring import CHOICE, CLOCKS, Row
from speed_rounds import lines_of_growth, lines_of_round, lines_of_warm_start
from speed_scale import lines_of_evaluate, lines_of_k_means, lines_of_sampler
from speed_sizes import Sizes, add_options, chosen
from speed_tables import markdown, save
from speed_training import (
    lines_of_fit,
    lines_of_gpu,
    lines_of_metric_loss,
    lines_of_ranking,
    lines_of_remembered,
    lines_of_rotation,
)

LINES: dict[str, Callable[[Sizes], list[Row]]] = {
    "fit": lines_of_fit,
    "gpu": lines_of_gpu,
    "cpu": lines_of_cpu,
    "round": lines_of_round,
    "warm-start": lines_of_warm_start,
    "remembered": lines_of_remembered,
    "rotation": lines_of_rotation,
    "ranking": lines_of_ranking,
    "metric-loss": lines_of_metric_loss,
    "sampler": lines_of_sampler,
    "evaluate": lines_of_evaluate,
    "k-means": lines_of_k_means,
    "growth": lines_of_growth,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", default=",".join(LINES), help="lines, joined by commas; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test")
    parser.add_argument("--out", type=Path, help="folder of table and plot; default: benchmarks/results/speed")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: for a machine that others share")
    add_options(parser)
    args = parser.parse_args(arguments)
    names = args.only.split(",")
    if unknown := set(names) - set(LINES):
        parser.error(f"--only must name lines of {', '.join(LINES)}, got {', '.join(sorted(unknown))}")
    os.environ[CHOICE] = args.clock
    sizes, out = chosen(args), args.out
    if out is None and not args.quick:
        out = ROOT / "benchmarks/results/speed"
    how = {"command": _command(sys.argv[1:] if arguments is None else arguments), "sizes": asdict(sizes)}
    for name in names:
        started = time.perf_counter()
        rows = LINES[name](sizes)
        took = {"versions": versions(), "took": time.perf_counter() - started}
        print(f"{markdown(rows)}\n", flush=True)
        if out is not None:
            save(out, name, rows, how | took, order=list(LINES))
    if out is not None:
        print(f"Saved {out / 'table.md'}")


def _command(arguments: Sequence[str]) -> str:
    """Return the line to type, without where the table goes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    return shlex.join(["python", "benchmarks/speed.py", *parser.parse_known_args(arguments)[1]])


if __name__ == "__main__":
    main()
