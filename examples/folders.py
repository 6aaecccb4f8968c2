"""A folder of pictures as a data set with two sides: in CUB's layout by its lists, or a folder per class by halves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from udmlss.data import ImageFiles, cub200, image_folder, split_classes


def open_folder(root: Path, split: Literal["train", "test"], *, transform: Callable[[Any], Any]) -> ImageFiles:
    if any((root / path).exists() for path in ("images.txt", "CUB_200_2011/images.txt")):
        return cub200(root, split, transform=transform)
    images = image_folder(root, transform=transform)
    side = split_classes(images.labels)[split == "test"]
    return ImageFiles([images.paths[index] for index in side], images.labels[side], images.classes, transform)
