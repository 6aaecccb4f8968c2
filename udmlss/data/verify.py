"""A copy of a data set, held against what its authors publish and read picture by picture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from tqdm import tqdm

from udmlss.data.catalog import Split
from udmlss.data.image_files import ImageFiles

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Report:
    """What was found in a copy of a data set, in sentences.

    Args:
        facts: What each split holds, and what is worth knowing and may well be so.
        problems: What is wrong; empty if all is well.
    """

    facts: tuple[str, ...]
    problems: tuple[str, ...]


def verify(
    openers: Mapping[str, Callable[[], ImageFiles]],
    published: Mapping[str, Split],
    *,
    quick: bool = False,
    progress: bool = True,
) -> Report:
    """Open every split, count it and read its pictures; where one split is refused the others are still read.

    Args:
        openers: What opens each split.
        published: What each split should hold; empty where nothing is published.
        quick: Do not read the pictures.
        progress: Show a progress bar.

    Raises:
        ImportError: Pillow is missing, which reads the pictures.
    """
    opened, refused = _open_all(openers)
    facts = [_count(name, images, published.get(name)) for name, images in opened.items()]
    facts += [fact for name, images in opened.items() for fact in _single(name, images)]
    unreadable, equal = ([], []) if quick else _read_all(opened, progress=progress)
    differ = any(_size(images) != published.get(name, _size(images)) for name, images in opened.items())
    unlike = ["Not the published data set: counts differ."] * differ
    return Report(facts=(*facts, *equal), problems=(*refused, *unlike, *unreadable))


def _open_all(openers: Mapping[str, Callable[[], ImageFiles]]) -> tuple[dict[str, ImageFiles], list[str]]:
    opened, refused = {}, []
    for name, open_split in openers.items():
        try:
            opened[name] = open_split()
        except ValueError as error:
            refused.append(str(error))
    return opened, list(dict.fromkeys(refused))  # splits that are refused alike say so once


def _size(images: ImageFiles) -> Split:
    return Split(len(images), len(images.labels[images.labels >= 0].unique()))


def _count(name: str, images: ImageFiles, published: Split | None) -> str:
    size = _size(images)
    says = f"{name}: {size.images} images " + (f"of {size.classes} classes" if images.classes else "without classes")
    if published is None:
        return says
    return (
        f"{says}, as published" if size == published else f"{says}, published {published.images} of {published.classes}"
    )


def _single(name: str, images: ImageFiles) -> list[str]:
    # A query or gallery may well hold one image of an item: what it is compared with lies in the other.
    single = int((images.labels[images.labels >= 0].bincount() == 1).sum()) * (name not in {"query", "gallery"})
    return [f"{name}: {single} of the classes with one image"] if single else []


def _read_all(opened: Mapping[str, ImageFiles], *, progress: bool) -> tuple[list[str], list[str]]:
    unreadable: list[str] = []
    equal: list[str] = []
    first_with: dict[bytes, Path] = {}
    items = [(images, index) for images in opened.values() for index in range(len(images))]
    for images, index in tqdm(items, desc="reading", unit="image", leave=False, disable=not progress):
        path = images.paths[index]
        try:
            images[index]
            first = first_with.setdefault(blake2b(path.read_bytes()).digest(), path)
        except OSError as error:
            unreadable.append(str(error))
        else:
            equal += [f"equal files: {first} and {path}"] * (first != path)
    return unreadable, equal
