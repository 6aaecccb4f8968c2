"""One setting over several values: one command, one table and one plot.

    python benchmarks/sweep.py --data cub100 --over k
    python benchmarks/sweep.py --data cub100 --over rotation
    python benchmarks/sweep.py --data cub100 --over loss
    python benchmarks/sweep.py --data cub100 --over whitening --method recipe-from-features

`k` goes from half to ten times the number of training classes, `rotation` is the weight of the rotation loss, `loss` is
the metric loss, `whitening` is to how many dimensions the first features are whitened, `left-out` is the share of each
cluster that is left out because it lies far from the centroid, `pooling` is how the trunk's maps become features. The
output folder is that of benchmarks/quality.py, the sweep a folder in it. Runs that the table there has with the same
settings are taken from there, and so are `frozen` and `supervised` for comparison if they are there.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace

from methods import METHODS, OWN_LOSS
from metric_losses import LOSSES
from plots import save_sweep
from runs import Run, ensure, read
from settings import Settings, build_parser, options_of, parse
from setups import open_data
from tables import write

FIELDS = {
    "k": "n_clusters",
    "rotation": "rotation_weight",
    "loss": "loss",
    "whitening": "whiten_first",
    "left-out": "leave_out",
    "pooling": "pooling",
}
LABELS = {
    "k": "number of clusters k",
    "rotation": "weight of the rotation loss",
    "loss": "metric loss",
    "whitening": "dimensions to which the first features are whitened; 0: not",
    "left-out": "share of each cluster that is left out",
    "pooling": "pooling",
}
VALUES: dict[str, Sequence[float] | Sequence[str]] = {
    "rotation": (0, 0.03, 0.1, 0.3, 1),
    "loss": list(LOSSES),
    "whitening": (0, 128),
    "left-out": (0, 0.2),
    "pooling": ("average", "average+maximum"),
}
TIMES_CLASSES = (0.5, 1, 2, 5, 10)


def cluster_counts(n_classes: int, n_images: int, settings: Settings) -> tuple[list[int], list[str]]:
    """Return the k to try, and sentences on those that the images or a batch cannot fill."""
    counts = [round(times * n_classes) for times in TIMES_CLASSES]
    p, k = settings.clusters_per_batch, settings.samples_per_cluster
    few = [count for count in counts if count < p]
    many = [count for count in counts if count * k > n_images]
    notes = [f"Left out: k = {count}, fewer than the {p} clusters of a batch." for count in few]
    notes += [f"Left out: k = {count}, for {n_images} images are fewer than {k} for each cluster." for count in many]
    return [count for count in counts if count not in few + many], notes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--over", choices=FIELDS, required=True)
    parser.add_argument("--method", choices=METHODS, default="udml-ss")
    args, base = parse(parser, arguments)
    if args.over == "loss" and args.method in OWN_LOSS:
        parser.error(f"--over loss needs a method that takes any loss; {args.method} has its own. Name another.")
    data = open_data(base, args.root)
    n_classes = len(data.labels.unique())
    values, notes = VALUES.get(args.over, ()), []
    if args.over == "k":
        values, notes = cluster_counts(n_classes, len(data.labels), base)
    folder = args.out / args.over
    settings = {value: replace(base, **{FIELDS[args.over]: value}) for value in values}
    folders = {value: args.out if settings[value] == base else folder / _name(value) for value in values}
    for value in values:
        read(folders[value], settings[value])  # refuses runs with other settings before any work
    for seed in range(args.seeds):
        for value in values:
            ensure(folders[value], args.method, seed, settings[value], data)
    swept = {_name(value): _of(args.method, read(folders[value], settings[value])) for value in values}
    frozen, supervised = (_of(end, read(args.out, base)) for end in ("frozen", "supervised"))
    groups = {"frozen": frozen, **swept, "supervised": supervised}
    command = ["--data", args.data, "--over", args.over, "--method", args.method, "--seeds", str(args.seeds)]
    command = f"python benchmarks/sweep.py {shlex.join([*command, *options_of(base)])}"
    where = f"{args.data}, validation split" if base.validate else args.data
    notes = [f"{args.method} on {where}, {n_classes} training classes.", *notes]
    shared = {name: value for name, value in asdict(base).items() if name != FIELDS[args.over]}
    rows = write(folder, groups, heading=args.over, command=command, settings=shared, notes=notes)
    title = f"{notes[0].rstrip('.')}; mean and standard deviation over seeds"
    save_sweep(folder / "plot.png", rows, title=title, label=LABELS[args.over])
    print(f"Saved {folder / 'plot.png'}")


def _name(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _of(method: str, runs: list[Run]) -> list[Run]:
    return [run for run in runs if run["method"] == method]


if __name__ == "__main__":
    main()
