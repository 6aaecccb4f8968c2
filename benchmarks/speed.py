"""Measure the speed of the library, each line of the table as a ratio to a baseline.

    python benchmarks/speed.py                              # all lines, more than an hour on two idle cores
    python benchmarks/speed.py --only sampler,evaluate      # some lines; the table retains the others
    python benchmarks/speed.py --only evaluate --rows 60502 --evaluations 1
    python benchmarks/speed.py --only command --photos photos
    python benchmarks/speed.py --quick                      # sizes for a test, whose ratios have no meaning

The table is saved in benchmarks/results/speed after each line. With --quick it is saved only if --out is given. An
error in a line is printed, the other lines are measured, and the exit code is 1. The program reads /proc, so it needs
Linux.
"""

import argparse
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from runs import versions
from settings import ROOT
from speed_clustering import lines_of_growth, lines_of_k_means, lines_of_round, lines_of_warm_start
from speed_command import lines_of_command
from speed_communities import lines_of_clustering
from speed_evaluation import lines_of_evaluate, lines_of_sampler
from speed_fit import lines_of_fit, lines_of_share
from speed_gpu import lines_of_compiled_gpu, lines_of_gpu, lines_of_gpu_clustering, lines_of_gpu_loader
from speed_measurements import CLOCK_VARIABLE, CLOCKS, Row, Sizes
from speed_ranks import lines_of_ranks
from speed_search import lines_of_search
from speed_tables import markdown, save
from speed_training import (
    lines_of_chunks,
    lines_of_cpu,
    lines_of_metric_loss,
    lines_of_ranking,
    lines_of_rotation,
)

LINES: dict[str, Callable[[Sizes], list[Row]]] = {
    "fit": lines_of_fit,
    "share": lines_of_share,
    "command": lines_of_command,
    "ranks": lines_of_ranks,
    "gpu": lines_of_gpu,
    "gpu-clustering": lines_of_gpu_clustering,
    "gpu-loader": lines_of_gpu_loader,
    "gpu-compiled": lines_of_compiled_gpu,
    "cpu": lines_of_cpu,
    "chunks": lines_of_chunks,
    "round": lines_of_round,
    "warm-start": lines_of_warm_start,
    "rotation": lines_of_rotation,
    "ranking": lines_of_ranking,
    "metric-loss": lines_of_metric_loss,
    "sampler": lines_of_sampler,
    "evaluate": lines_of_evaluate,
    "k-means": lines_of_k_means,
    "growth": lines_of_growth,
    "clustering": lines_of_clustering,
    "search": lines_of_search,
}
WITH_WORKERS = {"command", "gpu-loader"}  # lines that start worker processes, whose processor time is not measured
QUICK = Sizes(
    pairs=1,
    images=160,
    width=4,
    steps=4,
    relabel_every=2,
    round_images=200,
    pixels=32,
    cpu_steps=1,
    ranks=(2,),
    sampler_labels=2000,
    sampler_clusters=40,
    rows=300,
    default_rows=200,
    dimensions=16,
    evaluations=1,
    sop=(300, 16, 30, 2),
    million=(400, 8, 20, 1),
    cold=(300, 16, 30, 2),
    loss_batches=(20,),
    chunk_batch=160,
    growth=(200, 400),
    share=(480, 16),
    pictures=60,
    command_pixels=32,
    command_epochs=4,
    command_pairs=1,
    communities=(240, 16),
    many_communities=(260, 8),
    search=(900, 8),
    large_search=(1000, 9),
    queries=40,
    exact_up_to=0,
    gpu_rows=(240, 16),
)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Sizes]:
    """Return the arguments and the sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", default=",".join(LINES), help="comma-separated lines (default: all)")
    parser.add_argument("--quick", action="store_true", help="use small sizes, for a test")
    parser.add_argument("--out", type=Path, help="folder of the table (default: benchmarks/results/speed)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help=f"processor: measure processor time, on a shared machine; not for {', '.join(sorted(WITH_WORKERS))}",
    )
    options = parser.add_argument_group("sizes", "Changes to the sizes of what is measured; see `Sizes`.")
    for field in fields(Sizes):
        kind = field.type if field.type in {int, str} else _numbers
        options.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"default: {field.default}")
    args = parser.parse_args(arguments)
    names = set(args.only.split(","))
    if unknown := names - set(LINES):
        parser.error(f"--only must name lines of {', '.join(LINES)}, got {', '.join(sorted(unknown))}")
    if args.clock == "processor" and (found := WITH_WORKERS & names):
        parser.error(
            f"--clock processor must not be used for lines that start worker processes, got "
            f"{', '.join(sorted(found))}. Name the other lines by --only, or use --clock wall."
        )
    sizes = asdict(QUICK if args.quick else Sizes())
    given = {name: value for name in sizes if (value := getattr(args, name)) is not None}
    return args, Sizes(**sizes | given)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main(arguments: Sequence[str] | None = None) -> None:
    args, sizes = parse(arguments)
    os.environ[CLOCK_VARIABLE] = args.clock
    out = args.out
    if out is None and not args.quick:
        out = ROOT / "benchmarks/results/speed"
    source = {"command": _command(sys.argv[1:] if arguments is None else arguments), "sizes": asdict(sizes)}
    failed = []
    for name in args.only.split(","):
        started = time.perf_counter()
        try:
            rows = LINES[name](sizes)
        except Exception:  # noqa: BLE001 (the other lines are measured)
            traceback.print_exc()
            failed.append(name)
            continue
        measured = {"versions": versions(), "took": time.perf_counter() - started}
        print(f"{markdown(rows)}\n", flush=True)
        if out is not None:
            save(out, name, rows, source | measured, order=list(LINES))
    if out is not None:
        print(f"Saved {out / 'table.md'}")
    if failed:
        sys.exit(f"These lines ended with an error: {', '.join(failed)}.")


def _command(arguments: Sequence[str]) -> str:
    """Return the command line without its output folder."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    return shlex.join(["python", "benchmarks/speed.py", *parser.parse_known_args(arguments)[1]])


if __name__ == "__main__":
    main()
