"""Verification of published datasets: their archives, their sizes and their image files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from udmlss._checks import value_error
from udmlss.data.archives import check_md5, unpack
from udmlss.data.image_files import ImageFiles, find_damaged
from udmlss.data.image_reader import describe_damage
from udmlss.data.published.cars196 import CARS196, cars196
from udmlss.data.published.cub200 import CUB200, cub200
from udmlss.data.published.inshop import INSHOP, inshop
from udmlss.data.published.layout import PublishedDataset, SplitSize
from udmlss.data.published.sop import SOP, sop

DATASETS: Mapping[str, tuple[PublishedDataset, Callable[..., ImageFiles]]] = {
    dataset.name: (dataset, open_split)
    for dataset, open_split in ((CUB200, cub200), (CARS196, cars196), (SOP, sop), (INSHOP, inshop))
}
_RETRIEVAL_SPLITS = {"query", "gallery"}
_MAX_LINES = 10  # of the facts, and of the problems, in the text of a verification


@dataclass(frozen=True)
class Verification:
    """The verification of a copy of a published dataset, in sentences.

    Attributes:
        facts: Sizes of the splits, and properties that need not be errors.
        problems: Errors; empty if there are none.
    """

    facts: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        count = len(self.problems)
        summary = f"{count} problem{'s' * (count > 1)} found." if count else "No problems found."
        return "\n".join([*_shorten(self.facts), *_shorten(self.problems), summary])


def _shorten(lines: Sequence[str]) -> list[str]:
    n_more = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], *[f"... and {n_more} more"] * (n_more > 0)]


def unpack_archive(name: str, root: Path, *, progress: bool) -> None:
    """Check the MD5 checksums of the files of a dataset below a folder, and unpack its archive of images.

    Raises:
        ValueError: The archive is missing, damaged or has another checksum.
    """
    dataset, _ = DATASETS[name]
    archive = dataset.find_archive(root)
    if archive is None:
        rule = f"`unpack` requires {' or '.join(dataset.archives)} in {root}"
        raise value_error(rule, "none", "Download it, or omit `unpack`")
    for file, md5 in dataset.md5.items():
        if archive.with_name(file).is_file():
            check_md5(archive.with_name(file), md5)
    unpack(archive, archive.parent, progress=progress)


def verify_copy(name: str, root: Path, *, quick: bool, progress: bool) -> Verification:
    """Return the result of `verify` for a published dataset in a folder."""
    dataset, open_split = DATASETS[name]
    splits = {split: partial(open_split, root, split) for split in dataset.splits}
    return verify(splits, dataset.splits, quick=quick, progress=progress)


def verify(
    splits: Mapping[str, Callable[[], ImageFiles]],
    sizes: Mapping[str, SplitSize],
    *,
    quick: bool = False,
    progress: bool = True,
) -> Verification:
    """Open every split, compare its size with the published one, and read its images.

    An error in one split does not stop the verification of the others.

    Args:
        splits: For each split, a function that opens it.
        sizes: Published size of each split; empty for a dataset that is not published.
        quick: Whether to skip reading the images.
        progress: Whether to show a progress bar.
    """
    opened, errors = _open_splits(splits)
    facts = [_describe_size(name, _size(images), sizes.get(name)) for name, images in opened.items()]
    facts += [fact for name, images in opened.items() for fact in _describe_single_images(name, images)]
    read = {} if quick else opened
    damaged = [image for images in read.values() for image in find_damaged(images, progress=progress)]
    unreadable = [describe_damage(path, reason) for path, reason in damaged]
    identical = _find_identical(read, {path for path, _ in damaged})
    differs = any(sizes.get(name) not in {None, _size(images)} for name, images in opened.items())
    difference = ["This is not the published dataset: the sizes differ."] * differs
    return Verification(facts=(*facts, *identical), problems=(*errors, *difference, *unreadable))


def _open_splits(splits: Mapping[str, Callable[[], ImageFiles]]) -> tuple[dict[str, ImageFiles], list[str]]:
    opened, errors = {}, []
    for name, open_split in splits.items():
        try:
            opened[name] = open_split()
        except ValueError as error:
            errors.append(str(error))
    return opened, list(dict.fromkeys(errors))  # an error that all splits have in common is reported once


def _size(images: ImageFiles) -> SplitSize:
    return SplitSize(len(images), len(images.labels[images.labels >= 0].unique()))


def _describe_size(name: str, size: SplitSize, published: SplitSize | None) -> str:
    if published is None:
        return f"{name}: {size}" if size.n_classes else f"{name}: {size.n_images} images without classes"
    return f"{name}: {size}, as published" if size == published else f"{name}: {size}, published: {published}"


def _describe_single_images(name: str, images: ImageFiles) -> list[str]:
    # A query with a single image of its class has its matches in the gallery.
    n_classes = int((images.labels[images.labels >= 0].bincount() == 1).sum()) * (name not in _RETRIEVAL_SPLITS)
    return [f"{name}: classes with a single image: {n_classes}"] if n_classes else []


def _find_identical(splits: Mapping[str, ImageFiles], damaged: set[Path]) -> list[str]:
    """Return the pairs of identical files."""
    identical: list[str] = []
    first_with: dict[bytes, Path] = {}
    for path in (path for images in splits.values() for path in images.paths if path not in damaged):
        first = first_with.setdefault(blake2b(path.read_bytes()).digest(), path)
        identical += [f"identical files: {first} and {path}"] * (first != path)
    return identical
