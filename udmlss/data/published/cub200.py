"""CUB-200-2011: photographs of birds."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from udmlss._checks import value_error
from udmlss.data.image_files import ImageFiles, label_images
from udmlss.data.published.layout import PublishedDataset, SplitSize, check_files, check_unique, read_rows

CUB200 = PublishedDataset(
    name="cub200",
    folder="CUB_200_2011",
    parts=(("classes.txt",), ("images.txt",), ("image_class_labels.txt",), ("images/",)),
    archives=("CUB_200_2011.tgz",),
    splits={"train": SplitSize(5864, 100), "test": SplitSize(5924, 100)},
    md5={"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
)


def cub200(
    root: str | PathLike[str], split: Literal["train", "test"], *, transform: Callable[[Any], Any] | None = None
) -> ImageFiles:
    """Open a split of CUB-200-2011, or of any folder in its layout.

    The first half of the classes, by number, is for training, and the second half for testing. In CUB-200-2011 these
    are 5,864 images of 100 classes and 5,924 images of the other 100.

    Args:
        root: Path of the folder CUB_200_2011, or of its parent. The folder contains the lists classes.txt, images.txt
            and image_class_labels.txt, with a number and a name in each line, and the images in images/.
        split: "train" or "test".
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns PIL images.

    Returns:
        The images in the order of images.txt. Labels start at 0 in each split.

    Raises:
        ValueError: The folder has another layout, the lists contradict each other,
            or an image does not exist or is outside of the folder.

    Example:
        >>> train = cub200("~/data/CUB_200_2011", "train", transform=transform)  # doctest: +SKIP

    References:
        The Caltech-UCSD Birds-200-2011 Dataset. Wah et al. 2011. https://www.vision.caltech.edu/datasets/cub_200_2011
    """
    *lists, folder = CUB200.find_parts(root, split)
    names, files, class_of = map(_read_list, lists)
    check_unique([*files.values()], lists[1])
    if files.keys() != class_of.keys() or not set(class_of.values()) <= names.keys():
        found = f"{len(files)} images, {len(class_of)} labels and {len(names)} classes that do not match"
        rule = f"The lists in {folder.parent} must contain the same images and classes"
        raise value_error(rule, found, "Unpack the archive again")
    first_half = set(sorted(names, key=int)[: len(names) // 2])
    images = [(folder / file, class_of[image]) for image, file in files.items()]
    images = [(path, key) for path, key in images if (key in first_half) == (split == "train")]
    check_files([path for path, _ in images], folder, lists[1])
    return label_images(images, {key: names[key] for key in sorted({key for _, key in images}, key=int)}, transform)


def _read_list(path: Path) -> dict[str, str]:
    rows = read_rows(path, r"(\d+)\s+(\S.*)", "a number and a name")
    check_unique([row[0] for row in rows], path)
    return {row[0]: row[1] for row in rows}
