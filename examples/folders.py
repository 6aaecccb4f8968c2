"""A dataset from a folder of images, split by class into training and test images.

A module of reproduce.py, not a program.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from udmlss.data import ImageFiles, cub200, image_folder, split_classes


def open_folder(root: Path, split: Literal["train", "test"], *, transform: Callable[[Any], Any]) -> ImageFiles:
    """Open one half of the classes of a folder in the layout of CUB_200_2011, or of a folder per class."""
    if any((root / path).exists() for path in ("images.txt", "CUB_200_2011/images.txt")):
        return cub200(root, split, transform=transform)
    images = image_folder(root, transform=transform)
    indices = split_classes(images.labels)[split == "test"]
    return ImageFiles([images.paths[index] for index in indices], images.labels[indices], images.classes, transform)
