"""Caltech-UCSD Birds, and any folder in its layout."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from udmlss._checks import check_choice, value_error
from udmlss.data.catalog import CUB200
from udmlss.data.image_files import ImageFiles
from udmlss.data.layout import check_once, check_there, find, number, read_rows

_PARTS = (("classes.txt",), ("images.txt",), ("image_class_labels.txt",), ("images/",))


def cub200(
    root: str | PathLike[str],
    split: Literal["train", "test"],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open one half of a folder in the layout of CUB_200_2011, split by class as metric learning does.

    The first half of the classes, by number, is for training and the rest for testing: of CUB-200-2011 5,864 images
    of 100 classes and 5,924 of the other 100.

    Args:
        root: The folder CUB_200_2011, or the one it lies in. It holds classes.txt, images.txt and
            image_class_labels.txt, each line a number and a word, and the pictures in images/.
        split: "train" or "test".
        transform: Applied to each PIL image; give one that ends in a tensor.

    Returns:
        The images in the order of images.txt, labels counted from 0 within the split.

    Raises:
        ValueError: The folder is not in that layout, or the lists contradict each other or the pictures.

    Example:
        `train = cub200("CUB_200_2011", "train", transform=train_transform)`

    References:
        The Caltech-UCSD Birds-200-2011 Dataset. Wah et al. 2011. https://www.vision.caltech.edu/datasets/cub_200_2011
    """
    check_choice("split", split, ("train", "test"))
    *lists, pictures = find(root, CUB200, _PARTS)
    names, files, class_of = map(_read_list, lists)
    check_once([*files.values()], lists[1])
    if files.keys() != class_of.keys() or not set(class_of.values()) <= names.keys():
        counts = f"{len(files)} images, {len(class_of)} labels and {len(names)} classes"
        found = f"{counts} that do not match in {pictures.parent}"
        raise value_error("The three lists must name the same images and classes", found, "Unpack the archive again")
    half = set(sorted(names, key=int)[: len(names) // 2])
    images = [(pictures / file, class_of[image]) for image, file in files.items()]
    images = [(path, key) for path, key in images if (key in half) == (split == "train")]
    check_there(images, lists[1])
    return number(images, {key: names[key] for key in sorted({key for _, key in images}, key=int)}, transform)


def _read_list(path: Path) -> dict[str, str]:
    rows = read_rows(path, r"(\d+)\s+(\S.*)", "a number and a word")
    check_once([row[0] for row in rows], path)
    return {row[0]: row[1] for row in rows}
