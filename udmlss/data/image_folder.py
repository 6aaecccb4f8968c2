"""Datasets of the images in a folder."""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal
from warnings import warn

from udmlss._checks import check_choice, value_error
from udmlss.data.image_files import ImageFiles
from udmlss.data.image_reader import as_color, as_min_size, as_value_range
from udmlss.data.path_lists import IMAGE_SUFFIXES, PathList, is_image_name

_UNSUPPORTED_SUFFIXES = {
    *(".arw", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif"),
    *(".hif", ".jxl", ".nef", ".orf", ".psd", ".raf", ".raw", ".rw2", ".svg"),
}
_MODEL_SUFFIXES = {".ckpt", ".pt", ".pth", ".safetensors"}
_MAX_NAMES = 5  # in a warning
_Patterns = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def image_folder(
    root: str | os.PathLike[str],
    *,
    transform: Callable[[Any], Any] | None = None,
    exclude: _Patterns = (),
    background: str | Sequence[int] = (255, 255, 255),
    value_range: tuple[float, float] | None = None,
    min_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> ImageFiles:
    """Open a folder of images, either with one subfolder per class or without classes.

    Images directly in `root` have no class. Otherwise each folder in `root` is a class, which contains the images in
    it and in its subfolders. An image is a file with the suffix .avif, .bmp, .dib, .gif, .jfif, .jp2, .jpe, .jpeg,
    .jpg, .mpo, .pbm, .pgm, .png, .pnm, .ppm, .tga, .tif, .tiff or .webp, in lowercase or uppercase. Files and folders
    whose name begins with a dot are ignored. A warning names files in other image formats and broken links, which are
    not opened, and classes that contain model files, which may be output folders.

    Symbolic links to files and folders are followed, except for links to a folder that contains them.

    Args:
        root: Path of the folder.
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns PIL images.
        exclude: Names, relative paths or shell patterns of files and folders that are ignored, at every depth. For
            example, `"runs"` excludes every folder runs, and `"*_mask.png"` excludes masks.
        background: Color behind transparent pixels, as in `ImageFiles`.
        value_range: Values that become black and white in files with a single channel of more than 8 bits, as in
            `ImageFiles`.
        min_size: Shorter side in pixels that the transform needs, so that large JPEG files are decoded faster, as in
            `ImageFiles`.
        on_error: "raise" raises an error when an image that cannot be read is loaded. "skip" reads every file once
            when the folder is opened, skips those that cannot be read, and issues a warning that lists them. They
            are in the attribute `skipped` of the result.
        progress: Whether to show a progress bar while files are read for `on_error="skip"`.

    Returns:
        The images sorted by class, then by path. Without classes all labels are -1, and `classes` is empty.

    Raises:
        ValueError: There are no images, there are both images and folders of images, or a class has no images. A
            setting is out of range, which is found before the folder is read.
        TypeError: `min_size` is not an integer, or `value_range` does not hold numbers.
        OSError: A folder cannot be read.

    Example:
        >>> images = image_folder("~/photos", transform=transform)  # doctest: +SKIP
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    background, value_range, min_size = as_color(background), as_value_range(value_range), as_min_size(min_size)
    root = Path(root).expanduser()
    patterns = _as_patterns(exclude)
    folders, files = _list_folder(root, patterns) if root.is_dir() else ([], [])
    files_of_class = {folder.name: _find_files(folder, root, patterns) for folder in folders}
    loose_images = _select_images(files)
    images_of_class = {name: _select_images(found) for name, found in files_of_class.items()}
    _warn_of_unopened_files(root, [*files, *chain.from_iterable(files_of_class.values())])
    _check_folder(root, loose_images, images_of_class)
    if not loose_images:
        _warn_of_output_folders(root, files_of_class)
    paths = loose_images or [*chain.from_iterable(images_of_class.values())]
    classes = [] if loose_images else [*images_of_class]
    labels = [label for label, name in enumerate(classes) for _ in images_of_class[name]] or [-1] * len(paths)
    return ImageFiles(
        paths,
        labels,
        classes,
        transform,
        background=background,
        value_range=value_range,
        min_size=min_size,
        on_error=on_error,
        progress=progress,
    )


def find_images(root: str | os.PathLike[str], *, exclude: _Patterns = ()) -> Sequence[Path]:
    """Find the images in a folder and in all its subfolders, whose names are not classes.

    Files are selected by their suffix, links are followed, and hidden files are ignored, as in `image_folder`. A
    warning names files in other image formats and broken links.

    Args:
        root: Path of the folder.
        exclude: Names, relative paths or shell patterns of files and folders that are ignored, at every depth, as in
            `image_folder`.

    Returns:
        The sorted paths, in one block of memory that data loader workers share.

    Raises:
        ValueError: There is no such folder, or it does not contain images.
        OSError: A folder cannot be read.

    Example:
        >>> images = ImageFiles(find_images("~/photos"), transform=transform)  # doctest: +SKIP
    """
    root = Path(root).expanduser()
    entries = _find_files(root, None, _as_patterns(exclude)) if root.is_dir() else []
    paths = _select_images(entries)
    _warn_of_unopened_files(root, entries)
    if not paths:
        found = "none" if root.is_dir() else "no such folder"
        rule = f"{root} must contain images with the suffix {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise value_error(rule, found, "Pass the folder that contains the images")
    return PathList(paths)


def _as_patterns(exclude: _Patterns) -> list[str]:
    patterns = [str(Path(pattern).expanduser()) for pattern in _as_sequence(exclude)]
    if "." in patterns:
        rule = "`exclude` must hold names, relative paths or patterns of files and folders"
        raise value_error(rule, "an empty path or '.'", "Pass () to exclude nothing")
    return patterns


def _as_sequence(exclude: _Patterns) -> Sequence[str | os.PathLike[str]]:
    return [exclude] if isinstance(exclude, str | os.PathLike) else exclude


def _list_folder(folder: Path, exclude: Sequence[str]) -> tuple[list[Path], list[os.DirEntry[str]]]:
    """Return the subfolders and the other entries of a folder that are neither hidden nor excluded, sorted by name."""
    folders, files = [], []
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=attrgetter("name"))
    except PermissionError as error:
        remedy = "Change its permissions, or pass a list of the paths of the images in other folders"
        raise PermissionError(f"{folder} must be a readable folder, got {error.strerror}. {remedy}.") from error
    for entry in entries:
        if entry.name.startswith(".") or _matches(entry, exclude):
            continue
        if _is_kind(entry.is_dir):
            folders.append(folder / entry.name)
        else:
            files.append(entry)
    return folders, files


def _matches(entry: os.DirEntry[str], patterns: Sequence[str]) -> bool:
    return bool(patterns) and any(Path(entry.path).absolute().match(pattern) for pattern in patterns)


def _find_files(folder: Path, root: Path | None, exclude: Sequence[str]) -> list[os.DirEntry[str]]:
    """Return the files in a folder and in all its subfolders; `root` contains the folder, or is None."""
    found: list[os.DirEntry[str]] = []
    pending = [(folder, frozenset({os.path.realpath(root)} if root else ()))]
    while pending:
        current, parents = pending.pop()
        target = os.path.realpath(current)
        if target in parents:  # a link to a folder that contains it would be followed forever
            continue
        folders, files = _list_folder(current, exclude)
        found += files
        pending += [(subfolder, parents | {target}) for subfolder in folders]
    return found


def _select_images(entries: Sequence[os.DirEntry[str]]) -> list[str]:
    """Return the paths of the images, sorted by folder and name: a separator comes before all other characters."""
    return sorted((entry.path for entry in entries if _is_image(entry)), key=lambda path: path.replace(os.sep, "\0"))


def _is_kind(test: Callable[[], bool]) -> bool:
    """Return the result of `is_dir` or `is_file` of an entry; False for a link to itself, as for other broken links."""
    try:
        return test()
    except OSError:
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    return is_image_name(entry.name) and _is_kind(entry.is_file)


def _warn_of_unopened_files(root: Path, entries: Sequence[os.DirEntry[str]]) -> None:
    """Issue a warning if a folder contains files in unsupported image formats, broken links or special files."""
    unopened = [
        os.path.relpath(entry.path, root)
        for entry in entries
        if Path(entry.name).suffix.lower() in _UNSUPPORTED_SUFFIXES or not _is_kind(entry.is_file)
    ]
    if unopened:
        listed = ", ".join(unopened[:_MAX_NAMES]) + ", ..." * (len(unopened) > _MAX_NAMES)
        what = f"{len(unopened)} files in {root} are not opened, because their format is not supported or they are"
        warn(f"{what} broken links: {listed}. Convert or repair them if they should be used.", stacklevel=3)


def _warn_of_output_folders(root: Path, files_of_class: Mapping[str, Sequence[os.DirEntry[str]]]) -> None:
    """Issue a warning if a class contains model files, as the output folder of a training does."""
    for name, entries in files_of_class.items():
        if any(Path(entry.name).suffix.lower() in _MODEL_SUFFIXES for entry in entries):
            what = f"{name}/ in {root} contains model files and is opened as a class"
            warn(f"{what}. Pass exclude={name!r} if it is an output folder.", stacklevel=3)


def _check_folder(root: Path, loose_images: list[str], images_of_class: dict[str, list[str]]) -> None:
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    empty = [name for name, paths in images_of_class.items() if not paths]
    if loose_images and len(empty) < len(images_of_class):
        folder = next(name for name in images_of_class if name not in empty)
        rule = f"{root} must contain either images or one folder per class"
        remedy = f"Move the images into a folder, or pass exclude={folder!r}"
        raise value_error(rule, f"{Path(loose_images[0]).name} and {folder}/", remedy)
    if not loose_images and len(empty) == len(images_of_class):
        found = f"none in {len(empty)} folders" if empty else "none" if root.is_dir() else "no such folder"
        rule = f"{root} must contain images with the suffix {suffixes}"
        raise value_error(rule, found, "Pass the folder that contains the images")
    if not loose_images and empty:
        found = f"none in {len(empty)} of {len(images_of_class)} folders, the first is {empty[0]}/"
        rule = f"Each folder in {root} must contain images with the suffix {suffixes}"
        raise value_error(rule, found, "Remove or exclude it, or convert its files")
