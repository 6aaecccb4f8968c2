"""What decides a run, one preset per kind of data set, and the command line's options for it."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

ROOT = Path(__file__).parents[1]
Loss = Literal[
    *("multi-similarity", "contrastive", "triplet", "lifted", "n-pairs", "nt-xent", "sup-con", "circle", "margin"),
    *("fast-ap", "proxy-anchor", "soft-triple", "batch-all", "binomial-deviance", "nca", "neighbour", "cluster-nca"),
    *("hard-mining", "distance-weighted", "normalized-softmax"),
]


@dataclass(frozen=True)
class Settings:
    """What all methods of a table share. Lengths count optimiser steps.

    `small` is the quickstart's network, from scratch; the other backbones are those of examples/cub_resnet50.py.
    `validate` trains on half of the training classes and scores on the other half, for choosing the other settings.
    """

    data: str
    backbone: Literal["small", "efficientnet_lite0", "resnet50", "googlenet"]
    image_size: int
    embedding_size: int
    n_clusters: int
    steps: int
    relabel_every: int
    optimizer: Literal["adam", "adamw"]
    trunk_lr: float
    lr: float
    weight_decay: float
    freeze_batch_norm: bool
    loss: Loss = "multi-similarity"
    rotation_weight: float = 0.1
    rotation_images: int = 16
    clusters_per_batch: int = 16
    samples_per_cluster: int = 5
    whiten_first: int = 0  # 0 leaves the first features as they are
    leave_out: float = 0  # share of each cluster, farthest from its centroid
    pooling: Literal["average", "average+maximum", "maximum"] = "average"
    workers: int = 0
    validate: bool = False


GLYPHS = Settings(
    data="glyphs",
    backbone="small",
    image_size=32,
    embedding_size=128,
    n_clusters=500,
    steps=602,  # the quickstart's four passes over 12,034 images
    relabel_every=76,
    optimizer="adamw",
    trunk_lr=1e-3,
    lr=1e-3,
    weight_decay=0.01,
    freeze_batch_norm=False,
)
PICTURES = Settings(
    data="pictures",
    backbone="efficientnet_lite0",
    image_size=112,
    embedding_size=512,
    n_clusters=100,
    steps=150,
    relabel_every=30,
    optimizer="adam",
    trunk_lr=3e-5,
    lr=3e-4,
    weight_decay=5e-4,
    freeze_batch_norm=True,
)


def preset(data: str) -> Settings:
    """Return the settings of a data set before any option changes them."""
    return GLYPHS if data == "glyphs" else replace(PICTURES, data=data)


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every command takes: where the images are, seeds, and an option per setting."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="glyphs, cub100, or a folder (CUB_200_2011, or one per class)")
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared/data/cub100", help="where cub100 lies")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0")
    parser.add_argument("--out", type=Path, help="folder of runs and tables; default: benchmarks/results/NAME")
    options = parser.add_argument_group("settings", "Changes to the preset of the data set.")
    for field in fields(Settings)[1:]:
        option, choices = f"--{field.name.replace('_', '-')}", get_args(field.type)
        if field.type is bool:
            options.add_argument(option, action=argparse.BooleanOptionalAction)
        elif choices:
            options.add_argument(option, choices=choices)
        else:
            options.add_argument(option, type=field.type)
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Settings]:
    """Return the arguments, with `root` and `out` filled in, and the settings."""
    args = parser.parse_args(arguments)
    if args.data not in {"glyphs", "cub100"}:
        args.root = Path(args.data).resolve()
        args.data = args.root.name
        if args.data == "glyphs":
            parser.error("a folder by the name of glyphs would be taken for the data set; rename it")
    given = {field.name: value for field in fields(Settings) if (value := vars(args).get(field.name)) is not None}
    settings = replace(preset(args.data), **given)
    if settings.backbone == "small" and settings.pooling != "average":
        parser.error("the small backbone has no pooling to choose; leave --pooling out, or name another --backbone")
    args.out = args.out or ROOT / "benchmarks/results" / (args.data + "-validate" * settings.validate)
    return args, settings


def options_of(settings: Settings) -> list[str]:
    """Return the options that lead from the preset to these settings."""
    standard = asdict(preset(settings.data))
    changed = {name: value for name, value in asdict(settings).items() if value != standard[name]}
    return [word for name, value in changed.items() for word in _option(name.replace("_", "-"), value)]


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
