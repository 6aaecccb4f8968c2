"""How much each line of benchmarks/speed.py measures, and the command line's options for it."""

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Sizes:
    """Every field is an option; of several numbers, joined by commas.

    k-means of a shape is (rows, dimensions, clusters, iterations).
    """

    pairs: int = 5  # measurements side by side of what takes seconds
    images: int = 1500  # glyphs of 32 pixels that training sees
    width: int = 64  # channels of the network's first layers
    steps: int = 30
    relabel_every: int = 15
    round_images: int = 6000
    pixels: int = 112  # sides of the images of which the settings for a CPU are tried
    cpu_steps: int = 5
    sampler_labels: int = 1_000_000
    sampler_clusters: int = 10_000
    rows: int = 10_000  # of evaluation; SOP has 60502
    dimensions: int = 512
    default_rows: int = 4000  # beside pytorch-metric-learning's default, whose memory grows with their square; 0: not
    evaluations: int = 3
    with_peer: int = 1  # 0 leaves out what pytorch-metric-learning needs for the same evaluation
    sop: tuple[int, ...] = (59_551, 512, 11_318, 25)
    million: tuple[int, ...] = (1_000_000, 128, 10_000, 3)
    cold: tuple[int, ...] = (15_000, 512, 2_800, 25)
    loss_batches: tuple[int, ...] = (80, 240)
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000)


QUICK = Sizes(
    pairs=1,
    images=160,
    width=4,
    steps=4,
    relabel_every=2,
    round_images=200,
    pixels=32,
    cpu_steps=1,
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
    growth=(200, 400),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each size."""
    options = parser.add_argument_group("sizes", "Changes to what each line measures.")
    for field in fields(Sizes):
        kind = int if field.type is int else _numbers
        options.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"default: {field.default}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def chosen(args: argparse.Namespace) -> Sizes:
    """Return the sizes that the options ask for."""
    base = QUICK if args.quick else Sizes()
    return Sizes(**{field.name: _given(args, base, field.name) for field in fields(Sizes)})


def _given(args: argparse.Namespace, base: Sizes, name: str) -> int | tuple[int, ...]:
    value: int | tuple[int, ...] | None = getattr(args, name)
    return getattr(base, name) if value is None else value
