"""Verification of published datasets: their folders, annotation lists and image files."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from os import PathLike
from pathlib import Path

from tqdm import tqdm

from udmlss._checks import value_error
from udmlss.data.image_folder import ImageFiles

_MAX_NAMES = 8  # in an error message
_RETRIEVAL_SPLITS = {"query", "gallery"}


@dataclass(frozen=True)
class SplitSize:
    """Size of a split.

    Attributes:
        n_images: Number of images.
        n_classes: Number of classes.
    """

    n_images: int
    n_classes: int

    def __str__(self) -> str:
        return f"{self.n_images} images of {self.n_classes} classes"


@dataclass(frozen=True)
class PublishedDataset:
    """The files and sizes of a dataset as its authors publish it.

    Attributes:
        name: Name of the dataset in `python -m udmlss.data`.
        folder: Name of the folder that contains all files.
        parts: The required files and folders, each as one or more possible paths in that folder, in order of
            preference. The path of a folder ends in a slash. The last part is unpacked from the archive.
        archives: Possible paths of the archive of images.
        splits: Size of each split.
        md5: MD5 checksums of the archive and of files in the same folder, by name.
    """

    name: str
    folder: str
    parts: tuple[tuple[str, ...], ...]
    archives: tuple[str, ...]
    splits: Mapping[str, SplitSize]
    md5: Mapping[str, str] = field(default_factory=dict)

    def find_archive(self, root: Path) -> Path | None:
        """Return the path of the archive of images below `root`, or None if it does not exist."""
        return _first_existing(root, self.archives)

    def find_parts(self, root: str | PathLike[str]) -> list[Path]:
        """Return the path of each part, below `root` or below the dataset's folder in `root`.

        Raises:
            ValueError: A part does not exist.
        """
        root = Path(root).expanduser()
        inner = root / self.folder
        for folder in (root, inner):
            found = [path for path in (_first_existing(folder, paths) for paths in self.parts) if path]
            if len(found) == len(self.parts):
                return found
        folder = inner if inner.is_dir() else root
        *names, last = (" or ".join(paths) for paths in self.parts)
        rule = f"{folder} must have the layout of {self.folder}, with {', '.join(names)} and {last}"
        raise value_error(rule, _describe_content(folder), self._remedy(root, folder))

    def _remedy(self, root: Path, folder: Path) -> str:
        if self.find_archive(root) and not _first_existing(folder, self.parts[-1]):
            return f"Unpack the archive: `python -m udmlss.data {self.name} {shlex.quote(str(root))} --unpack`"
        archive = Path(self.archives[0]).name
        return f"Pass the folder that contains them, or download the missing files; the images are in {archive}"


def _first_existing(folder: Path, paths: Sequence[str]) -> Path | None:
    for path in paths:
        found = folder / path
        if found.is_dir() if path.endswith("/") else found.is_file():
            return found
    return None


def _describe_content(folder: Path) -> object:
    if not folder.is_dir():
        return "no such folder"
    return sorted(path.name for path in folder.iterdir())[:_MAX_NAMES] or "an empty folder"


def read_rows(path: Path, pattern: str, columns: str, *, header: int = 0) -> list[tuple[str, ...]]:
    """Return the columns of each line of an annotation list. Empty lines are ignored.

    Args:
        path: Path of the list.
        pattern: Regular expression of a line, with one group per column.
        columns: Names of the columns, for error messages and for the header.
        header: Number of the line that names the columns, which precedes the first row. 0 means no header.

    Raises:
        ValueError: The header or a line is damaged, or there are no rows.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if header and columns.split() not in [line.split() for line in lines[header - 1 : header]]:
        found = repr(lines[header - 1]) if len(lines) >= header else f"{len(lines)} lines"
        raise value_error(f"Line {header} of {path} must be {columns}", found, "Unpack the archive again")
    matches = [(line, re.fullmatch(pattern, line.strip())) for line in lines[header:]]
    damaged = [(number, line) for number, (line, match) in enumerate(matches, header + 1) if line.strip() and not match]
    rows = [match.groups() for _, match in matches if match]
    if damaged or not rows:
        found = f"{damaged[0][1]!r} in line {damaged[0][0]}" if damaged else "an empty list"
        raise value_error(f"Each line of {path} must be {columns}", found, "Unpack the archive again")
    return rows


def check_unique(names: Sequence[str], path: Path) -> None:
    """Raise ValueError if a name occurs twice in the annotations in `path`."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        found = f"{len(repeated)} repeated in {len(names)} lines, the first is {repeated[0]}"
        raise value_error(f"Names in {path} must be unique", found, "Unpack the archive again")


def check_files_exist(images: Sequence[tuple[Path, object]], annotations: Path) -> None:
    """Raise ValueError unless every image in the annotations is a file."""
    missing = [path for path, _ in images if not path.is_file()]
    if missing:
        found = f"{len(missing)} of {len(images)} missing, the first is {missing[0]}"
        raise value_error(f"Every image in {annotations.name} must exist", found, "Unpack the archive again")


@dataclass(frozen=True)
class Report:
    """Result of a verification, in sentences.

    Attributes:
        facts: Sizes of the splits, and properties that need not be errors.
        problems: Errors; empty if there are none.
    """

    facts: tuple[str, ...]
    problems: tuple[str, ...]


def verify(
    splits: Mapping[str, Callable[[], ImageFiles]],
    sizes: Mapping[str, SplitSize],
    *,
    quick: bool = False,
    progress: bool = True,
) -> Report:
    """Open every split, compare its size with the published one, and read its images.

    An error in one split does not stop the verification of the others.

    Args:
        splits: For each split, a function that opens it.
        sizes: Published size of each split; empty for a dataset that is not published.
        quick: Whether to skip reading the images.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: Pillow is not installed.
    """
    opened, errors = _open_splits(splits)
    facts = [_describe_size(name, _size(images), sizes.get(name)) for name, images in opened.items()]
    facts += [fact for name, images in opened.items() for fact in _describe_single_images(name, images)]
    unreadable, identical = ([], []) if quick else _read_images(opened, progress=progress)
    differs = any(sizes.get(name) not in {None, _size(images)} for name, images in opened.items())
    difference = ["This is not the published dataset: the sizes differ."] * differs
    return Report(facts=(*facts, *identical), problems=(*errors, *difference, *unreadable))


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


def _read_images(splits: Mapping[str, ImageFiles], *, progress: bool) -> tuple[list[str], list[str]]:
    """Return the errors of unreadable images, and the pairs of identical files."""
    unreadable: list[str] = []
    identical: list[str] = []
    first_with: dict[bytes, Path] = {}
    items = [(images, index) for images in splits.values() for index in range(len(images))]
    for images, index in tqdm(items, desc="reading", unit="image", leave=False, disable=not progress):
        path = images.paths[index]
        try:
            images[index]
            first = first_with.setdefault(blake2b(path.read_bytes()).digest(), path)
        except OSError as error:
            unreadable.append(str(error))
        else:
            identical += [f"identical files: {first} and {path}"] * (first != path)
    return unreadable, identical
