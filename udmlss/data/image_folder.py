"""Datasets of image files, folders of images, and splits by class."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from udmlss._checks import as_labels, check_number, value_error
from udmlss.types import Labels

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # those of torchvision
_Class = TypeVar("_Class")


class ImageFiles(Dataset[tuple[Any, int]]):
    """Image files with class labels. An image is read when its item is loaded; an item is `(image, label)`.

    Args:
        paths: Path of each image.
        labels: Label of each image, an index into `classes`; -1 for an image without a class.
        classes: Names of the classes; empty for images without classes.
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns the PIL
            image.

    Raises:
        ValueError: `labels` does not hold one label per path, or a label is not in -1..len(classes) - 1.
        TypeError: `labels` are not integers.
        OSError: A file is missing, truncated or not an image. This error is raised when the item is loaded.

    Example:
        >>> ImageFiles(["cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"], [0, 0, 1], ["cats", "dogs"])
        ImageFiles(3 images of 2 classes)
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        labels: Labels,
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.paths: list[Path] = [Path(path).expanduser() for path in paths]
        self.labels: Int64[Tensor, " n"] = as_labels(labels, len(self.paths)).cpu()
        self.classes: list[str] = list(classes)
        self.transform = transform
        invalid = self.labels[(self.labels < -1) | (self.labels >= len(self.classes))]
        if len(invalid):
            rule = f"`labels` must lie in -1..{len(self.classes) - 1}, the indices of `classes`"
            raise value_error(rule, int(invalid[0]), "Pass the name of every class")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = _read_image(self.paths[index])
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def __repr__(self) -> str:
        classes = f"of {len(self.classes)} classes" if self.classes else "without classes"
        return f"ImageFiles({len(self)} images {classes})"


def _read_image(path: Path) -> "Image":
    try:
        from PIL import Image  # noqa: PLC0415 (optional)
    except ImportError as error:
        message = 'Reading image files requires Pillow, got none. Install it: pip install "udmlss[demo]"'
        raise ImportError(message, name=error.name) from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all errors of Pillow's readers
        message = f"{path} must be a complete image file, got {error}. Download or unpack it again, or remove it."
        raise OSError(message) from error


def image_folder(
    root: str | os.PathLike[str],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open a folder of images, either with one subfolder per class or without classes.

    Images directly in `root` have no class. Otherwise each folder in `root` is a class, which contains the images in
    it and in its subfolders. An image is a file with the suffix .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff or
    .webp, in lowercase or uppercase. Files and folders whose name begins with a dot are ignored.

    Args:
        root: Path of the folder.
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns PIL images.

    Returns:
        The images sorted by class, then by path. Without classes all labels are -1, and `classes` is empty.

    Raises:
        ValueError: There are no images, there are both images and folders of images, or a class has no images.

    Example:
        >>> images = image_folder("~/photos", transform=transform)  # doctest: +SKIP
    """
    root = Path(root).expanduser()
    visible = [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []
    loose_images = sorted(path for path in visible if _is_image(path))
    images_of_class = {folder.name: _find_images(folder) for folder in sorted(visible) if folder.is_dir()}
    _check_folder(root, loose_images, images_of_class)
    if loose_images:
        return ImageFiles(loose_images, [-1] * len(loose_images), [], transform)
    images = [(path, name) for name, paths in images_of_class.items() for path in paths]
    return label_images(images, {name: name for name in images_of_class}, transform)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _find_images(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if _is_image(path))
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _check_folder(root: Path, loose_images: list[Path], images_of_class: dict[str, list[Path]]) -> None:
    suffixes = ", ".join(sorted(_SUFFIXES))
    empty = [name for name, paths in images_of_class.items() if not paths]
    if loose_images and len(empty) < len(images_of_class):
        folder = next(name for name in images_of_class if name not in empty)
        rule = f"{root} must contain either images or one folder per class"
        raise value_error(rule, f"{loose_images[0].name} and {folder}/", "Move the images into a folder")
    if not loose_images and len(empty) == len(images_of_class):
        found = f"none in {len(empty)} folders" if empty else "none" if root.is_dir() else "no such folder"
        rule = f"{root} must contain images with the suffix {suffixes}"
        raise value_error(rule, found, "Pass the folder that contains the images")
    if not loose_images and empty:
        found = f"none in {len(empty)} of {len(images_of_class)} folders, the first is {empty[0]}/"
        rule = f"Each folder in {root} must contain images with the suffix {suffixes}"
        raise value_error(rule, found, "Remove it, or convert its files")


def label_images(
    images: Sequence[tuple[Path, _Class]],
    names: Mapping[_Class, str],
    transform: Callable[[Any], Any] | None,
) -> ImageFiles:
    """Return a dataset of images whose classes are numbered in the order of `names`.

    Args:
        images: Path and class of each image; the class is a key of `names`.
        names: Name of each class.
        transform: Transform of the dataset.
    """
    label_of = {key: label for label, key in enumerate(names)}
    labels = torch.tensor([label_of[key] for _, key in images], dtype=torch.int64)
    return ImageFiles([path for path, _ in images], labels, list(names.values()), transform)


def split_classes(labels: Labels, fraction: float = 0.5) -> tuple[Int64[Tensor, " first"], Int64[Tensor, " second"]]:
    """Split images into two parts that have no class in common.

    Train on one part and score on the other to choose settings without the test classes. The images of a part are
    `torch.utils.data.Subset(images, indices.tolist())`.

    Args:
        labels: Class of each image.
        fraction: Fraction of the classes, in ascending order, that are in the first part, rounded down to whole
            classes. The default is that of the usual splits of CUB-200-2011 and Cars196.

    Returns:
        The indices of the images in the first part, and those in the second; both are ascending.

    Raises:
        ValueError: `fraction` is not in 0..1, a part would have no class, or a label is below 0.
        TypeError: The labels are not integers.

    Example:
        >>> split_classes([2, 0, 1, 3, 0])
        (tensor([1, 2, 4]), tensor([0, 3]))
    """
    check_number("fraction", fraction, least=0, most=1)
    labels = as_labels(labels)
    if (labels < 0).any():
        found = f"{int((labels < 0).sum())} of {len(labels)} below 0"
        raise value_error("`labels` must be 0 or above", found, "Remove the images without a class")
    classes = labels.unique()
    n_first = int(round(float(fraction) * len(classes), 6))  # 0.29 * 100 is slightly below 29 in floating point
    if not 0 < n_first < len(classes):
        found, remedy = f"{len(classes)} classes", "Choose a fraction closer to 0.5, or add images of other classes"
        raise value_error(f"`fraction={fraction}` must leave a class in each part", found, remedy)
    in_first = torch.isin(labels, classes[:n_first])
    return in_first.nonzero().flatten(), (~in_first).nonzero().flatten()
