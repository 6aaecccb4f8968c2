"""Compare how well methods retrieve classes that training did not see.

    python benchmarks/quality.py --data glyphs
    python benchmarks/quality.py --data cub100 --methods udml,udml-ss --seeds 3 --steps 300
    python benchmarks/quality.py --data groceries --protocol own
    python benchmarks/quality.py --data logos --validate --methods default-keep-colors,default-ignore-colors
    python benchmarks/quality.py --data glyphs --no-searches        # without the scores of searches with neighbors

Every method trains the same model for the same number of steps, except `default`, its variants and
`supervised-default`, which train for the default length of `fit`: eight epochs, but at least 250 steps. These are some
of the methods; docs/guides/methods-side-by-side.md describes all of them:

    frozen                the model before training, which is always included
    udml, udml-ss         k-means with --n-clusters clusters, without and with the rotation loss
    ...-true-k            as many clusters as training classes; -twice-k: twice as many
    recipe                udml with two views and averaged weights
    recommended           recipe with an embedder initialized by a PCA, and averages of 5 neighbors before k-means
    default               the defaults of `fit`, which need no number of clusters, and the colors of `compare_colors`
    default-ignore-colors default without colors; default-keep-colors: with colors
    default-ignore-orientation
                          default with embeddings that ignore rotations by multiples of 90 degrees
    supervised            udml with true labels, as an upper bound
    supervised-default    default with true labels and the embedder as it was trained, as an upper bound

The first half of the classes, in the order of their numbers or folder names, is for training, and the second half is
scored. With `--protocol own`, a model trains without labels on the images of all classes, and the same images are
scored.

Each run is saved as a file in the output folder and is not repeated. The table lists all runs in the folder.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from methods import COMPARED, METHODS
from runs import Run, ensure, has_searches, read
from settings import Settings, build_parser, options_of, parse
from setups import open_data
from tables import Row, write


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--methods", default=",".join(COMPARED), help=f"comma-separated: {', '.join(METHODS)}")
    parser.add_argument(
        "--searches",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also score searches with neighbors, which take some milliseconds per test image on the CPU",
    )
    args, settings = parse(parser, arguments)
    methods = list(dict.fromkeys(["frozen", *args.methods.split(",")]))
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"--methods must be among {', '.join(METHODS)}, got {', '.join(unknown)}")
    read(args.out, settings)  # ends the program if there are runs with other settings, before any work
    data = open_data(settings, args.root)
    for seed in range(args.seeds):
        for method in methods:
            ensure(args.out, method, seed, settings, data, searches=args.searches)
    tabulate(args.out, settings, args.data)


def tabulate(folder: Path, settings: Settings, data: str | None = None) -> list[Row]:
    """Write the table of all runs in a folder, and return its rows. `data` is the value of `--data` in its commands."""
    runs = read(folder, settings)
    groups = {method: found for method in METHODS if (found := [run for run in runs if run["method"] == method])}
    command = _commands(groups, settings, data or settings.data)
    return write(folder, groups, heading="method", command=command, settings=asdict(settings))


def _commands(groups: Mapping[str, Sequence[Run]], settings: Settings, data: str) -> str:
    """Return the commands that make the runs: one for each number of seeds, with and without searches."""
    methods: dict[tuple[int, bool], list[str]] = {}
    for method, runs in groups.items():
        key = (1 + max(run["seed"] for run in runs), any(map(has_searches, runs)))
        methods.setdefault(key, []).append(method)
    lines = []
    for (seeds, searches), names in methods.items():
        words = ["--data", data, "--methods", ",".join(names), "--seeds", str(seeds), *options_of(settings)]
        lines.append(f"python benchmarks/quality.py {shlex.join(words)}" + " --no-searches" * (not searches))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
