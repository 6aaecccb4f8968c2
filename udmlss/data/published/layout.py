"""Folders, annotation lists and sizes of datasets as their authors publish them."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from udmlss._checks import check_choice, value_error

_MAX_NAMES = 8  # in an error message


@dataclass(frozen=True)
class SplitSize:
    """Numbers of images and of classes in a split."""

    n_images: int
    n_classes: int

    def __str__(self) -> str:
        return f"{self.n_images} images of {self.n_classes} classes"


@dataclass(frozen=True)
class PublishedDataset:
    """The files and sizes of a dataset as its authors publish it.

    Attributes:
        name: Name of the dataset in `udmlss dataset`.
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

    def find_parts(self, root: str | PathLike[str], split: str) -> list[Path]:
        """Return the path of each part, below `root` or below the dataset's folder in `root`.

        Raises:
            ValueError: The dataset does not have this split, or a part does not exist.
        """
        check_choice("split", split, tuple(self.splits))
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
            return f"Unpack the archive: `udmlss dataset {self.name} {shlex.quote(str(root))} --unpack`"
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


def check_files(paths: Sequence[Path], folder: Path, annotations: Path) -> None:
    """Raise ValueError unless every image in the annotations is a file inside a folder.

    Args:
        paths: Path of each image.
        folder: Path of the folder. It may be a symbolic link, but links in it must not lead out of it.
        annotations: Path of the annotations, for error messages.
    """
    outside = [path for path in paths if not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts]
    _check_inside(paths, outside, folder)
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 (Path.is_file raises for long names)
    if missing:
        found = f"{len(missing)} of {len(paths)} missing, the first is {missing[0]}"
        raise value_error(f"Every image in {annotations.name} must exist", found, "Unpack the archive again")
    target = Path(os.path.realpath(folder))
    targets = {parent: Path(os.path.realpath(parent)) for parent in {path.parent for path in paths}}
    linked = {path: Path(os.path.realpath(path)) for path in paths if path.is_symlink()}
    outside = [path for path in paths if not linked.get(path, targets[path.parent]).is_relative_to(target)]
    _check_inside(paths, outside, folder)


def _check_inside(paths: Sequence[Path], outside: Sequence[Path], folder: Path) -> None:
    if outside:
        found = f"{len(outside)} of {len(paths)} outside, the first is {outside[0]}"
        remedy = "Unpack the archive again, or replace links by the files"
        raise value_error(f"Every image in the list must be inside {folder}", found, remedy)
