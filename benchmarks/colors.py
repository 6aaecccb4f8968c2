"""Compare the neighbors of images with and without colors on the training images of four datasets.

    python benchmarks/colors.py
    python benchmarks/colors.py --data logos,cub100 --image-size 160
    python benchmarks/colors.py --data logos --protocol own

The table has the fractions of neighbors that an image has in common with its three nearest neighbors, for several
numbers of random images.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from markdown_tables import markdown_table
from settings import PHOTO_SETS, ROOT, preset
from setups import backbone_of, build_model, open_data

from udmlss import compare_colors

SIZES = (2000, 1000, 500)


def compare(data: str, root: Path, image_size: int, protocol: Literal["unseen", "own"]) -> Iterator[list[str]]:
    """Yield a row of the table for each number of images."""
    settings = replace(preset(data), image_size=image_size, protocol=protocol)
    images = open_data(settings, root / data).plain
    backbone = backbone_of(build_model(settings, seed=0), settings)
    for size in SIZES:
        found = compare_colors(backbone, images, max_images=size)
        numbers = (found.with_colors, found.without_colors, found.standard_error, found.saturation)
        choice = "yes" if found.ignore_colors else "no"
        yield [data, str(min(size, len(images))), *(f"{100 * number:.1f}" for number in numbers), choice]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(PHOTO_SETS), help="comma-separated datasets (default: all)")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the datasets")
    parser.add_argument("--image-size", type=int, default=preset("photos").image_size, help="size in pixels")
    parser.add_argument("--protocol", choices=("unseen", "own"), default="unseen", help="own: images of all classes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/colors.md", help="file of the table")
    args = parser.parse_args(arguments)
    titles = [
        "",
        "images",
        "with colors",
        "without colors",
        "standard error of the difference",
        "saturation",
        "ignore colors",
    ]
    rows = [row for data in args.data.split(",") for row in compare(data, args.root, args.image_size, args.protocol)]
    options = ["--data", args.data] if args.data != ",".join(PHOTO_SETS) else []
    options += ["--image-size", str(args.image_size)] if args.image_size != preset("photos").image_size else []
    options += ["--protocol", args.protocol] if args.protocol != "unseen" else []
    command = f"python benchmarks/colors.py {shlex.join(options)}".strip()
    args.out.write_text(f"# Neighbors in common, in percent\n\n{markdown_table(titles, rows)}\n\n```\n{command}\n```\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
