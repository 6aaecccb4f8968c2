"""Cars196: photographs of cars."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from udmlss._checks import check_choice, value_error
from udmlss.data.image_files import ImageFiles, label_images
from udmlss.data.published.layout import PublishedDataset, SplitSize, check_files, check_unique
from udmlss.data.published.matlab import read_mat

CARS196 = PublishedDataset(
    name="cars196",
    folder="cars196",
    parts=(("cars_annos.mat",), ("car_ims/",)),
    archives=("car_ims.tgz",),
    splits={"train": SplitSize(8054, 98), "test": SplitSize(8131, 98)},
    md5={
        "car_ims.tgz": "d5c8f0aa497503f355e17dc7886c3f14",
        "cars_annos.mat": "b407c6086d669747186bd1d764ff9dbc",
    },
)


def cars196(
    root: str | PathLike[str],
    split: Literal["train", "test"],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open a split of Cars196 (Stanford Cars).

    The first half of the classes is for training, and the second half for testing: 8,054 images of 98 classes and
    8,131 images of the other 98. The authors' own split is for classification and is not used. Their later layout,
    with the images in cars_train/ and cars_test/, is not supported.

    Args:
        root: Path of the folder that contains cars_annos.mat and the images of car_ims.tgz in car_ims/, or of a parent
            folder in which it is named cars196.
        split: "train" or "test".
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns PIL images.

    Returns:
        The images in the order of cars_annos.mat. Labels start at 0 in each split.

    Raises:
        ValueError: The folder has another layout, the annotations are damaged,
            or an image does not exist or is outside of the folder.

    Example:
        >>> train = cars196("~/data/cars196", "train", transform=transform)  # doctest: +SKIP

    References:
        3D Object Representations for Fine-Grained Categorization. Krause et al. 2013.
        https://ai.stanford.edu/~jkrause/cars/car_dataset.html
    """
    check_choice("split", split, ("train", "test"))
    annotations, folder = CARS196.find_parts(root)
    files, classes, names = _read_annotations(annotations)
    check_unique(files, annotations)
    half = len(names) // 2
    images = [(folder.parent / file, key) for file, key in zip(files, classes, strict=True)]
    images = [(path, key) for path, key in images if (key <= half) == (split == "train")]
    check_files([path for path, _ in images], folder, annotations)
    return label_images(images, {key: names[key - 1] for key in sorted({key for _, key in images})}, transform)


def _read_annotations(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Return the path and the class (from 1) of each image, and the names of the classes."""
    try:
        content = read_mat(path)
        annotations = content["annotations"]
        files = [_as_text(file) for file in annotations["relative_im_path"]]
        classes = [int(key.item()) for key in annotations["class"]]
        names = [_as_text(name) for name in content["class_names"]]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError) as error:
        rule = f"{path} must be the published MATLAB file with `annotations` and `class_names`"
        raise value_error(rule, repr(error), "Download it again") from error
    unnamed = [key for key in classes if not 1 <= key <= len(names)]
    if unnamed:
        found = f"class {unnamed[0]} and {len(names)} names"
        raise value_error(f"Every class in {path} must have a name", found, "Download it again")
    return files, classes, names


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value
