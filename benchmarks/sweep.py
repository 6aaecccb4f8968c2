"""Compare the values of one setting of a method.

    python benchmarks/sweep.py --data cub100 --over k
    python benchmarks/sweep.py --data cub100 --over rotation
    python benchmarks/sweep.py --data cub100 --over loss --method udml
    python benchmarks/sweep.py --data cub100 --over steps --method udml
    python benchmarks/sweep.py --data cub100 --over rate --method default --seeds 1 --validate

`k` is the number of clusters, from half to ten times the number of training classes, `rotation` is the weight of the
rotation loss, `loss` is the metric loss, `steps` is the number of steps, from a fifth to twice that of `--steps`, and
`rate` is the learning rate of the trunk, up to ten times that of `--trunk-lr`.
The output folder is that of benchmarks/quality.py, with a folder per sweep in it. Runs that the table of quality.py has
with the same settings are used, as are its runs of `frozen` and `supervised` for comparison.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace

from methods import METHODS, OWN_LOSS
from metric_losses import LOSSES
from runs import Run, ensure, read
from settings import Settings, build_parser, options_of, parse
from setups import open_data
from tables import write

FIELDS = {"k": "n_clusters", "rotation": "rotation_weight", "loss": "loss", "steps": "steps", "rate": "trunk_lr"}
VALUES: dict[str, Sequence[float] | Sequence[str]] = {"rotation": (0, 0.03, 0.1, 0.3, 1), "loss": list(LOSSES)}
CLUSTERS_PER_CLASS = (0.5, 1, 2, 5, 10)


def cluster_counts(n_classes: int, n_images: int, settings: Settings) -> tuple[list[int], list[str]]:
    """Return the numbers of clusters to compare, and notes on those with too few clusters or images for a batch."""
    counts = [round(ratio * n_classes) for ratio in CLUSTERS_PER_CLASS]
    p, k = settings.clusters_per_batch, settings.samples_per_cluster
    few = [count for count in counts if count < p]
    many = [count for count in counts if count * k > n_images]
    notes = [f"k = {count} is not possible: a batch has {p} clusters." for count in few]
    notes += [f"k = {count} is not possible: {n_images} images are fewer than {k} per cluster." for count in many]
    return [count for count in counts if count not in few + many], notes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--over", choices=FIELDS, required=True, help="the setting that is varied")
    parser.add_argument("--method", choices=METHODS, default="udml-ss")
    args, base = parse(parser, arguments)
    if args.over == "loss" and args.method in OWN_LOSS:
        parser.error(f"--over loss needs a method that uses --loss, got {args.method}, which has its own loss")
    data = open_data(base, args.root)
    n_classes = len(data.labels.unique())
    values, notes = VALUES.get(args.over, ()), []
    if args.over == "k":
        values, notes = cluster_counts(n_classes, len(data.labels), base)
    elif args.over == "steps":
        values = (base.steps // 5, base.steps // 2, base.steps, 2 * base.steps)
    elif args.over == "rate":
        values = tuple(float(f"{factor * base.trunk_lr:.1g}") for factor in (1, 3.3, 10))
    folder = args.out / args.over
    settings = {value: replace(base, **{FIELDS[args.over]: value}) for value in values}
    folders = {value: args.out if settings[value] == base else folder / _name(value) for value in values}
    for value in values:
        read(folders[value], settings[value])  # ends the program if there are runs with other settings
    for seed in range(args.seeds):
        for value in values:
            ensure(folders[value], args.method, seed, settings[value], data)
    swept = {_name(value): _runs_of(args.method, read(folders[value], settings[value])) for value in values}
    frozen, supervised = (_runs_of(method, read(args.out, base)) for method in ("frozen", "supervised"))
    groups = {"frozen": frozen, **swept, "supervised": supervised}
    command = ["--data", args.data, "--over", args.over, "--method", args.method, "--seeds", str(args.seeds)]
    command = f"python benchmarks/sweep.py {shlex.join([*command, *options_of(base)])}"
    where = base.data + ", own pictures" * (base.protocol == "own") + ", validation split" * base.validate
    notes = [f"{args.method} on {where}, {n_classes} training classes.", *notes]
    shared = {name: value for name, value in asdict(base).items() if name != FIELDS[args.over]}
    write(folder, groups, heading=args.over, command=command, settings=shared, notes=notes)


def _name(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _runs_of(method: str, runs: list[Run]) -> list[Run]:
    return [run for run in runs if run["method"] == method]


if __name__ == "__main__":
    main()
