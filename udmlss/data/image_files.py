"""Datasets of image files, and damaged image files."""

import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from operator import index as as_index
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeVar
from warnings import warn

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from udmlss._checks import as_labels, check_choice, value_error
from udmlss.data.image_reader import as_color, as_min_size, as_value_range, describe_error, is_system_error, read_image
from udmlss.data.path_lists import PathList, as_path_list
from udmlss.types import Labels

_WHITE = (255, 255, 255)
_MAX_PATHS = 5  # in a warning
_PATHS_PER_TASK = 16
_Class = TypeVar("_Class")


class DamagedImage(NamedTuple):
    """An image file that cannot be read.

    Attributes:
        path: Path of the file.
        reason: Message of the error.
    """

    path: Path
    reason: str


class ImageFiles(Dataset[tuple[Any, int]]):
    """Image files, with or without class labels. An image is read when its item is loaded, as `(image, label)`.

    Files are read as an image viewer shows them and converted to RGB with 8 bits per channel: the EXIF orientation is
    applied, transparent pixels are composited onto a background, and of an animation the first frame is read. 16-bit
    values 0..65535 are scaled to 0..255. 32-bit integers and floating-point values are scaled from the smallest and
    the largest value of the file, unless all values are in 0..255 or, for floating point, in 0..1. Color profiles are
    not applied.

    Args:
        paths: Path of each image, for example from `find_images` or `read_paths`.
        labels: Label of each image, an index into `classes`; -1 for an image without a class. None means that no image
            has a class.
        classes: Names of the classes; empty for images without classes.
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns the PIL
            image.
        background: Color behind transparent pixels: a name that Pillow accepts, or red, green and blue in 0..255.
        value_range: Values that become black and white in files with a single channel of more than 8 bits, such as
            `(0, 4095)` for 12-bit values in 16-bit files. Values outside are clipped. None scales as described above.
        min_size: Shorter side in pixels that the transform needs. JPEG files are decoded at a half, a quarter or an
            eighth of their resolution if their shorter side is then at least this long. This is several times as fast
            for photographs of many megapixels, and changes the pixels slightly. Pass twice the size to which the
            transform resizes images, as `Backbone.min_size` does. None decodes all pixels.
        on_error: "raise" raises an error when an image that cannot be read is loaded. "skip" reads every file once
            when the dataset is created, skips those that cannot be read, and issues a warning that lists them.
        progress: Whether to show a progress bar while files are read for `on_error="skip"`.

    Attributes:
        paths: Path of each image.
        labels: Label of each image.
        classes: Names of the classes.
        skipped: Images that were skipped by `on_error="skip"`.

    Raises:
        ValueError: `labels` does not hold one label per path, or a label is not in -1..len(classes) - 1. `background`
            is not a color, `value_range` is not an ascending pair, `min_size` is below 1, or `on_error` is unknown.
            `on_error="skip"` skips every image.
        TypeError: `paths` is one path instead of a sequence, `labels` or `min_size` are not integers, or `value_range`
            does not hold numbers.
        OSError: A file is missing, damaged or not an image. This error is raised when the item is loaded.

    Example:
        >>> ImageFiles(["1.jpg", "2.jpg"])
        ImageFiles(2 images without classes)
        >>> ImageFiles(["cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"], [0, 0, 1], ["cats", "dogs"])
        ImageFiles(3 images of 2 classes)
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        labels: Labels | None = None,
        classes: Sequence[str] = (),
        transform: Callable[[Any], Any] | None = None,
        *,
        background: str | Sequence[int] = _WHITE,
        value_range: tuple[float, float] | None = None,
        min_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool = True,
    ) -> None:
        self.paths: Sequence[Path] = as_path_list(paths, "paths")
        n = len(self.paths)
        self.labels: Tensor = torch.full((n,), -1) if labels is None else as_labels(labels, n).cpu()
        self.classes: list[str] = list(classes)
        self.transform = transform
        self.background = as_color(background)
        self.value_range = as_value_range(value_range)
        self.min_size = as_min_size(min_size)
        self.skipped: tuple[DamagedImage, ...] = ()
        invalid = self.labels[(self.labels < -1) | (self.labels >= len(self.classes))]
        if len(invalid):
            rule = f"`labels` must lie in -1..{len(self.classes) - 1}, the indices of `classes`"
            raise value_error(rule, int(invalid[0]), "Pass the name of every class")
        check_choice("on_error", on_error, ("raise", "skip"))
        if on_error == "skip":
            self._skip_damaged(progress=progress)

    def _skip_damaged(self, *, progress: bool) -> None:
        self.skipped = tuple(find_damaged(self, progress=progress))
        if not self.skipped:
            return
        summary = _summarize(self.skipped)
        if len(self.skipped) == len(self):
            raise value_error("An image must be readable", f"{len(self)} that are not: {summary}", "Check the files")
        damaged = {path for path, _ in self.skipped}
        indices = [index for index, path in enumerate(self.paths) if path not in damaged]
        warn(f"{len(self.skipped)} of {len(self)} images cannot be read and are skipped: {summary}", stacklevel=3)
        self.paths, self.labels = PathList(self.paths[index] for index in indices), self.labels[indices]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        index = as_index(index)
        image = read_image(self.paths[index], self.background, self.value_range, min_size=self.min_size)
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def __repr__(self) -> str:
        classes = f"of {len(self.classes)} classes" if self.classes else "without classes"
        return f"ImageFiles({len(self)} images {classes})"


def find_damaged(images: ImageFiles, *, progress: bool = True) -> list[DamagedImage]:
    """Read every image and return those that cannot be read.

    Files are read in several threads, and the transform is not applied. In formats without checksums, which are all
    but PNG, a changed byte may give other pixels instead of an error.

    Args:
        images: Image files, for example from `image_folder`.
        progress: Whether to show a progress bar.

    Returns:
        The path of each damaged image and the reason, in the order of `images`.

    Raises:
        OSError: A file cannot be read for another reason, such as too many open files or an error of the disk.

    Example:
        >>> for path, reason in find_damaged(images):  # doctest: +SKIP
        ...     print(path, reason)
    """

    def reason(index: int) -> str | None:
        try:
            read_image(images.paths[index], images.background, images.value_range, min_size=images.min_size)
        except OSError as error:
            if is_system_error(error):
                raise
            return describe_error(error.__cause__ or error)
        return None

    with ThreadPool() as pool:
        reasons = pool.imap(reason, range(len(images)), _PATHS_PER_TASK)  # holds all arguments in memory
        bar = tqdm(reasons, "reading", len(images), unit="image", leave=False, disable=not progress)
        return [DamagedImage(path, found) for path, found in zip(images.paths, bar, strict=True) if found is not None]


def label_images(
    images: Sequence[tuple[Path, _Class]], names: Mapping[_Class, str], transform: Callable[[Any], Any] | None
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


def _summarize(damaged: Sequence[DamagedImage]) -> str:
    listed = "; ".join(f"{path} ({reason})" for path, reason in damaged[:_MAX_PATHS])
    n_more = len(damaged) - _MAX_PATHS
    return listed + (f"; and {n_more} more" if n_more > 0 else "")
