"""Pictures of one's own: a folder of them, or a folder per class."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from udmlss._checks import value_error
from udmlss.data.image_files import ImageFiles
from udmlss.data.layout import number

_ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # as torchvision's ImageFolder


def image_folder(
    root: str | PathLike[str],
    *,
    transform: Callable[[Any], Any] | None = None,
) -> ImageFiles:
    """Open a folder of pictures, with a folder per class or without classes.

    Pictures directly in `root` have no class. Otherwise each folder in `root` is a class, and its pictures are those
    in it at any depth. A picture is a file that ends in .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff or .webp, in
    small letters or capitals. Other files are left out, and so is whatever is hidden by a dot before its name.

    Args:
        root: The folder.
        transform: Applied to each PIL image; give one that ends in a tensor.

    Returns:
        The images sorted by class, then by path. Labels count the classes from 0; without classes every label is -1
        and `classes` is empty.

    Raises:
        ValueError: There is no picture, there are pictures beside folders of pictures, or a class has no picture.

    Example:
        `train = image_folder("pictures", transform=train_transform)`
    """
    root = Path(root).expanduser()
    visible = [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []
    loose = sorted(path for path in visible if _is_picture(path))
    of_class = {folder.name: _pictures_below(folder) for folder in sorted(visible) if folder.is_dir()}
    _check_layout(root, loose, of_class)
    if loose:
        labels = torch.full((len(loose),), -1, dtype=torch.int64)
        return ImageFiles(paths=loose, labels=labels, classes=(), transform=transform)
    images = [(path, name) for name, pictures in of_class.items() for path in pictures]
    return number(images, {name: name for name in of_class}, transform)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and path.is_file()


def _pictures_below(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if _is_picture(path))
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _check_layout(root: Path, loose: list[Path], of_class: dict[str, list[Path]]) -> None:
    empty = [name for name, pictures in of_class.items() if not pictures]
    if loose and len(empty) < len(of_class):
        beside = next(name for name in of_class if name not in empty)
        raise value_error(
            f"{root} must hold pictures or a folder per class, not both",
            f"{loose[0].name} beside {beside}/",
            "Move the pictures into a folder",
        )
    if not loose and len(empty) == len(of_class):
        found = f"none in {len(of_class)} folders" if of_class else "none" if root.is_dir() else "no such folder"
        raise value_error(f"{root} must hold pictures, in {_listed()}", found, "Pass the folder that they lie in")
    if not loose and empty:
        raise value_error(
            f"Each folder in {root} must hold pictures, in {_listed()}",
            f"none in {len(empty)} of {len(of_class)}, the first is {empty[0]}/",
            "Take it away, or convert its files",
        )


def _listed() -> str:
    return ", ".join(sorted(_ENDINGS))
