"""Caltech-UCSD Birds, and any folder in its layout."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from udmlss._checks import check_choice, refusal
from udmlss.data.files import ImageFiles

_LISTS = ("classes.txt", "images.txt", "image_class_labels.txt")


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
    folder = _find(Path(root).expanduser())
    names, files, class_of = (_read_list(folder / name) for name in _LISTS)
    if files.keys() != class_of.keys() or not set(class_of.values()) <= names.keys():
        found = f"{len(files)} images, {len(class_of)} labels and {len(names)} classes that do not match in {folder}"
        raise refusal("The three lists must name the same images and classes", found, "Unpack the archive again")
    half = set(sorted(names, key=int)[: len(names) // 2])
    numbers = [number for number in files if (class_of[number] in half) == (split == "train")]
    kept = sorted({class_of[number] for number in numbers}, key=int)
    label_of = {name: label for label, name in enumerate(kept)}
    paths = [folder / "images" / files[number] for number in numbers]
    _check_there(paths)
    return ImageFiles(
        paths=paths,
        labels=torch.tensor([label_of[class_of[number]] for number in numbers]),
        classes=[names[number] for number in kept],
        transform=transform,
    )


def _find(root: Path) -> Path:
    for folder in (root, root / "CUB_200_2011"):
        if all((folder / name).is_file() for name in _LISTS) and (folder / "images").is_dir():
            return folder
    found = sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else "no such folder"
    raise refusal(
        f"{root} must be a folder in CUB_200_2011's layout, with {', '.join(_LISTS)} and images/",
        found or "an empty folder",
        "Pass the folder that the archive CUB_200_2011.tgz unpacks to",
    )


def _read_list(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    bad = next((number for number, pair in enumerate(pairs, 1) if len(pair) != 2 or not pair[0].isdigit()), None)  # noqa: PLR2004
    if bad is not None or not pairs:
        found = f"{lines[bad - 1]!r} in line {bad}" if bad else "an empty file"
        raise refusal(f"Each line of {path} must be a number and a word", found, "Unpack the archive again")
    return dict(pairs)


def _check_there(paths: list[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise refusal(
            "Every image in images.txt must be there",
            f"{len(missing)} of {len(paths)} missing, the first is {missing[0]}",
            "Unpack the archive again",
        )
