"""Cars196: the Stanford cars, split by class."""

import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from udmlss._checks import check_choice, value_error
from udmlss.data.catalog import CARS196
from udmlss.data.image_files import ImageFiles
from udmlss.data.layout import check_once, check_there, find, number

_PARTS = (("cars_annos.mat",), ("car_ims/",))
_DAMAGE = (
    MatReadError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    NotImplementedError,
    zlib.error,
)


def cars196(
    root: str | PathLike[str],
    split: Literal["train", "test"],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open one half of the Stanford cars, split by class as metric learning does.

    The first half of the classes is for training and the rest for testing: 8,054 images of 98 classes and 8,131 of
    the other 98. The authors' own split, by image within each class, is for classification and not used here. Nor is
    their later layout read, with the pictures in cars_train/ and cars_test/.

    Args:
        root: The folder with cars_annos.mat and, in car_ims/, the pictures of the archive car_ims.tgz.
        split: "train" or "test".
        transform: Applied to each PIL image; give one that ends in a tensor.

    Returns:
        The images in the order of cars_annos.mat, labels counted from 0 within the split.

    Raises:
        ValueError: The folder is not in that layout, or the annotations are damaged or contradict the pictures.

    Example:
        `train = cars196("cars196", "train", transform=train_transform)`

    References:
        3D Object Representations for Fine-Grained Categorization. Krause et al. 2013.
        https://ai.stanford.edu/~jkrause/cars/car_dataset.html
    """
    check_choice("split", split, ("train", "test"))
    annotations, pictures = find(root, CARS196, _PARTS)
    files, classes, names = _read(annotations)
    check_once(files, annotations)
    half = len(names) // 2
    images = [(pictures.parent / file, key) for file, key in zip(files, classes, strict=True)]
    images = [(path, key) for path, key in images if (key <= half) == (split == "train")]
    check_there(images, annotations)
    return number(images, {key: names[key - 1] for key in sorted({key for _, key in images})}, transform)


def _read(path: Path) -> tuple[list[str], list[int], list[str]]:
    try:
        content = loadmat(path, squeeze_me=True, variable_names=["annotations", "class_names"])
        annotations = np.atleast_1d(content["annotations"])
        files = [str(file) for file in annotations["relative_im_path"]]
        classes = [int(key) for key in annotations["class"]]
        names = [str(name) for name in np.atleast_1d(content["class_names"])]
    except _DAMAGE as error:
        raise value_error(
            f"{path} must be the authors' MATLAB file, with `annotations` and `class_names`",
            repr(error),
            "Download it again",
        ) from error
    wrong = [key for key in classes if not 1 <= key <= len(names)]
    if wrong:
        found = f"class {wrong[0]} and {len(names)} names"
        raise value_error(f"Each class in {path} must have one of its names", found, "Download it again")
    return files, classes, names
