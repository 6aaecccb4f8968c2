"""What the openers share: a data set's files found, its lists read, held against the pictures, and numbered."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch

from udmlss._checks import value_error
from udmlss.data.catalog import Published
from udmlss.data.image_files import ImageFiles

_Key = TypeVar("_Key")
_SHOWN = 8


def find(root: str | PathLike[str], published: Published, parts: Sequence[tuple[str, ...]]) -> list[Path]:
    """Return where each part of a data set lies, below `root` or below the authors' folder in it.

    Args:
        root: The folder to look in.
        published: The data set.
        parts: For each part the places where it may lie, the first that is there counts; a folder ends in a slash.
            The last comes out of the archive.

    Raises:
        ValueError: No folder has all parts. Where the archive is there, the line that unpacks it is said.
    """
    root = Path(root).expanduser()
    inner = root / published.folder
    for folder in (root, inner):
        found = [path for path in (_first(folder, places) for places in parts) if path]
        if len(found) == len(parts):
            return found
    folder = inner if inner.is_dir() else root
    *names, last = (" or ".join(places) for places in parts)
    raise value_error(
        f"{folder} must be a folder in {published.folder}'s layout, with {', '.join(names)} and {last}",
        _what_lies_in(folder),
        _remedy(root, published, unpacked=_first(folder, parts[-1]) is not None),
    )


def _first(folder: Path, places: tuple[str, ...]) -> Path | None:
    there = (folder / to_device for to_device in places)
    kinds = (Path.is_dir if to_device.endswith("/") else Path.is_file for to_device in places)
    return next((path for path, is_kind in zip(there, kinds, strict=True) if is_kind(path)), None)


def _what_lies_in(folder: Path) -> object:
    names = sorted(path.name for path in folder.iterdir())[:_SHOWN] if folder.is_dir() else "no such folder"
    return names or "an empty folder"


def _remedy(root: Path, published: Published, *, unpacked: bool) -> str:
    if published.archive_in(root) and not unpacked:
        return f"Unpack the archive: `{published.how_to_unpack(root)}`"
    archive = Path(published.archives[0]).name
    return f"Pass the folder that holds all of these, or download what is missing; the pictures are in {archive}"


def read_rows(path: Path, pattern: str, row: str, *, header: int = 0) -> list[tuple[str, ...]]:
    """Return the columns of each line of a list; empty lines are left out.

    Args:
        path: The list.
        pattern: A line, as a regular expression with a group for each column.
        row: The same in words.
        header: Number of the line that names the columns as `row` does, the last before the first row; 0 for none.

    Raises:
        ValueError: A line is no row, the header is another, or there is no row.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if header and row.split() not in [line.split() for line in lines[header - 1 : header]]:
        found = repr(lines[header - 1]) if len(lines) >= header else f"{len(lines)} lines"
        raise value_error(f"Line {header} of {path} must be {row}", found, "Unpack the archive again")
    matches = [(line, re.fullmatch(pattern, line.strip())) for line in lines[header:]]
    bad = [(at, line) for at, (line, match) in enumerate(matches, header + 1) if line.strip() and not match]
    rows = [match.groups() for _, match in matches if match]
    if bad or not rows:
        found = f"{bad[0][1]!r} in line {bad[0][0]}" if bad else "an empty file"
        raise value_error(f"Each line of {path} must be {row}", found, "Unpack the archive again")
    return rows


def check_once(names: Sequence[str], path: Path) -> None:
    """Refuse a list in which a name stands twice."""
    again = [name for name, times in Counter(names).items() if times > 1]
    if again:
        raise value_error(
            f"Each name must stand once in {path}",
            f"{len(again)} of {len(names)} there again, the first is {again[0]}",
            "Unpack the archive again",
        )


def check_there(images: Sequence[tuple[Path, object]], listed_in: Path) -> None:
    """Refuse a list that names pictures which are not there."""
    missing = [path for path, _ in images if not path.is_file()]
    if missing:
        raise value_error(
            f"Every image in {listed_in.name} must be there",
            f"{len(missing)} of {len(images)} missing, the first is {missing[0]}",
            "Unpack the archive again",
        )


def number(
    images: Sequence[tuple[Path, _Key]], names: Mapping[_Key, str], transform: Callable[[Any], Any] | None
) -> ImageFiles:
    """Return images with their classes counted from 0 in the order of `names`.

    Args:
        images: File and class of each image, the class as a key of `names`.
        names: The name of each class.
        transform: As in `ImageFiles`.
    """
    label_of = {key: label for label, key in enumerate(names)}
    return ImageFiles(
        paths=[path for path, _ in images],
        labels=torch.tensor([label_of[key] for _, key in images], dtype=torch.int64),
        classes=list(names.values()),
        transform=transform,
    )
