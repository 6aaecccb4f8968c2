"""Cars196: photographs of cars."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from udmlss._checks import value_error
from udmlss.data.image_files import ImageFiles, label_images
from udmlss.data.published.layout import PublishedDataset, SplitSize, check_files, check_unique

CARS196 = PublishedDataset(
    name="cars196",
    folder="cars196",
    parts=(("cars_annos.mat",), ("car_ims/",)),
    archives=("car_ims.tgz",),
    splits={"train": SplitSize(8054, 98), "test": SplitSize(8131, 98)},
    md5={"car_ims.tgz": "d5c8f0aa497503f355e17dc7886c3f14", "cars_annos.mat": "b407c6086d669747186bd1d764ff9dbc"},
)
# SciPy's reader ends its process for some damaged files, and allocates any memory that a damaged file asks for. It thus
# runs in a process of its own with at most 8 GiB of memory; on Windows, which has no such limit, with any memory.
_PROGRAM = """
import contextlib, io, json, sys
with contextlib.suppress(ImportError, ValueError, OSError):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
from scipy.io import loadmat
content = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=["annotations", "class_names"])
annotations = content["annotations"]
files, names = (
    ["".join(text.ravel()) for text in texts.ravel()]
    for texts in (annotations["relative_im_path"], content["class_names"])
)
print(json.dumps([files, [int(key.item()) for key in annotations["class"].ravel()], names]))
"""


def cars196(
    root: str | PathLike[str], split: Literal["train", "test"], *, transform: Callable[[Any], Any] | None = None
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
    annotations, folder = CARS196.find_parts(root, split)
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
        files, classes, names = _read_mat(path.read_bytes())
    except (OSError, ValueError) as error:
        rule = f"{path} must be the published MATLAB file with `annotations` and `class_names`"
        raise value_error(rule, error, "Download it again") from error
    unnamed = [key for key in classes if not 1 <= key <= len(names)]
    if unnamed:
        found = f"class {unnamed[0]} and {len(names)} names"
        raise value_error(f"Every class in {path} must have a name", found, "Download it again")
    return files, classes, names


@lru_cache(maxsize=1)  # both splits read the same file
def _read_mat(content: bytes) -> Any:  # noqa: ANN401 (of JSON)
    command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM]
    done = subprocess.run(command, input=content, capture_output=True, check=False)  # noqa: S603 (our own program)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise ValueError([f"a file that ends its reader with status {done.returncode}", *lines][-1])
    return json.loads(done.stdout)
