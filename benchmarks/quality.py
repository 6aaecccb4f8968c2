"""Compare how well methods retrieve classes that training did not see.

    python benchmarks/quality.py --data glyphs
    python benchmarks/quality.py --data cub100 --methods udml,udml-ss --seeds 3 --steps 300
    python benchmarks/quality.py --data groceries --protocol own

Every method trains the same model on the same number of images, except `default`, its variants and `supervised-
default`, which train for the eight epochs of `fit`'s defaults instead of four. The methods are described in
docs/guides/methods-side-by-side.md. Only the upper bounds train on labels: `supervised`, which is `udml` with true
labels, and `supervised-default`, which is `default` with true labels. `frozen` is the model before training and is
always included.
`recommended` is `udml` with `two-views`, `averaged` weights, an embedder `from-features` and `average-neighbors`,
which are also methods of their own; `recipe` has the first two. `default` has no number of clusters. The number of
clusters is `--n-clusters`, with `true-k` the true number of training classes, and with `twice-k` twice this number.

The first half of the classes, in the order of their numbers or folder names, is for training, and the second half is
scored. With `--protocol own`, a model trains without labels on the images of all classes, and the same images are
scored.

Each run is saved as a file in the output folder and is not repeated. The table lists all runs in the folder.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from methods import COMPARED, METHODS, TABLE_ORDER
from runs import ensure, read
from settings import Settings, build_parser, options_of, parse
from setups import open_data
from tables import Row, write


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--methods", default=",".join(COMPARED), help=f"comma-separated: {', '.join(METHODS)}")
    args, settings = parse(parser, arguments)
    methods = list(dict.fromkeys(["frozen", *args.methods.split(",")]))
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"--methods must be among {', '.join(METHODS)}, got {', '.join(unknown)}")
    read(args.out, settings)  # ends the program if there are runs with other settings, before any work
    data = open_data(settings, args.root)
    for seed in range(args.seeds):
        for method in methods:
            ensure(args.out, method, seed, settings, data)
    tabulate(args.out, settings)


def tabulate(folder: Path, settings: Settings) -> list[Row]:
    """Write the table of all runs in a folder, and return its rows."""
    runs = read(folder, settings)
    groups = {method: found for method in TABLE_ORDER if (found := [run for run in runs if run["method"] == method])}
    seeds = 1 + max(run["seed"] for run in runs)
    listed = ",".join(method for method in groups if method in METHODS)
    command = ["--data", settings.data, "--methods", listed, "--seeds", str(seeds), *options_of(settings)]
    command = f"python benchmarks/quality.py {shlex.join(command)}"
    return write(folder, groups, heading="method", command=command, settings=asdict(settings))


if __name__ == "__main__":
    main()
