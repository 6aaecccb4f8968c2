"""Settings of a run, one preset per kind of dataset, and their command-line options."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

ROOT = Path(__file__).parents[1]
PHOTO_SETS = ("cub100", "groceries", "plankton", "logos")  # folders in the folder of `--root`
Loss = Literal[
    *("multi-similarity", "contrastive", "triplet", "lifted", "n-pairs", "nt-xent", "sup-con", "circle", "margin"),
    *("fast-ap", "proxy-anchor", "soft-triple", "batch-all", "binomial-deviance", "nca", "nearest-positive"),
    *("cluster-nca", "hard-mining", "distance-weighted", "normalized-softmax", "cluster-memory"),
]


@dataclass(frozen=True)
class Settings:
    """The settings that all methods of a table have in common. Lengths are numbers of optimizer steps.

    `small` is the network of the quickstart, trained from scratch; the other backbones are those of
    examples/cub_resnet50.py. The protocol `unseen` trains on half of the classes and scores on the other half. The
    protocol `own` trains and scores on the same images, those of all classes: a user's own pictures. `validate` does
    the same with the training classes alone, to choose settings without the test classes.
    """

    data: str
    backbone: Literal["small", "efficientnet-lite0", "resnet50", "googlenet"]
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
    workers: int = 0
    validate: bool = False
    protocol: Literal["unseen", "own"] = "unseen"


GLYPHS = Settings(
    data="glyphs",
    backbone="small",
    image_size=32,
    embedding_size=128,
    n_clusters=500,
    steps=602,  # 4 epochs of 12,034 images
    relabel_every=76,
    optimizer="adamw",
    trunk_lr=1e-3,
    lr=1e-3,
    weight_decay=0.01,
    freeze_batch_norm=False,
)
PHOTOS = Settings(
    data="photos",
    backbone="efficientnet-lite0",
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
    """Return the default settings of a dataset."""
    return GLYPHS if data == "glyphs" else replace(PHOTOS, data=data)


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all commands have: images, seeds, output folder and settings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = ", ".join(PHOTO_SETS)
    parser.add_argument(
        "--data", required=True, help=f"glyphs, {sets}, or a folder in the layout of CUB_200_2011 or with one per class"
    )
    parser.add_argument("--root", type=Path, default=ROOT / "data", help=f"folder of {sets}")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0")
    parser.add_argument("--out", type=Path, help="folder of runs and tables (default: benchmarks/results/NAME)")
    options = parser.add_argument_group("settings", "Changes to the preset of the dataset.")
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
    """Return the arguments, in which `root` is the folder of the dataset and `out` is given, and the settings.

    `data` remains as it was passed. The settings have the name of the dataset, which is that of the folder.
    """
    args = parser.parse_args(arguments)
    name = args.data
    if name in PHOTO_SETS:
        args.root /= name
    elif name != "glyphs":
        args.root = Path(name).expanduser().resolve()
        name = args.root.name
        if name == "glyphs":
            parser.error("a folder must not be named glyphs, which is the name of a dataset; rename it")
    given = {field.name: value for field in fields(Settings)[1:] if (value := vars(args)[field.name]) is not None}
    settings = replace(preset(name), **given)
    args.out = args.out or ROOT / "benchmarks/results" / folder_name(settings)
    return args, settings


def folder_name(settings: Settings) -> str:
    """Return the name of the folder of runs: the dataset, the protocol unless it is `unseen`, and the split."""
    return settings.data + "-own" * (settings.protocol == "own") + "-validate" * settings.validate


def options_of(settings: Settings) -> list[str]:
    """Return the command-line options of all settings that differ from the preset."""
    standard = asdict(preset(settings.data))
    changed = {name: value for name, value in asdict(settings).items() if value != standard[name]}
    return [word for name, value in changed.items() for word in _option(name.replace("_", "-"), value)]


def load_settings(saved: Mapping[str, Any]) -> Settings | None:
    """Return saved settings, or None if they are not settings of a run that can be repeated.

    Settings that were added after the run have their defaults.
    """
    try:
        return Settings(**saved)
    except TypeError:
        return None


def _option(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
