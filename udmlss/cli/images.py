"""Images below a folder or in a list of paths, and the subcommands `check` and `dataset`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from udmlss._checks import check_choice, check_integer, value_error
from udmlss._files import output_file
from udmlss.cli.messages import message_of
from udmlss.data import ImageCheck, ImageFiles, check_images, find_images, read_paths
from udmlss.data.image_reader import is_unreadable
from udmlss.data.path_lists import LIST_SUFFIXES
from udmlss.data.published.verification import DATASETS, Verification, unpack_archive, verify_copy

_LISTED_PATHS = 5  # in an error


def check(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    min_size: int = 32,
    progress: bool = True,
) -> ImageCheck:
    """Read all images of a folder and show which are broken, unusual or duplicates.

    Args:
        folder: Folder whose images are read, also those in its subfolders, or a .txt, .csv, .tsv or .parquet file
            with the paths of images.
        out: Name of a .csv file to which all findings are written. By default none is written.
        min_size: Shorter side in pixels below which an image is tiny.
        progress: Whether to print what is done.

    Returns:
        The findings. The exit code of the command is 1 if files are broken.

    Raises:
        ValueError: `folder` has no images, the suffix of `out` is not .csv, or `min_size` is below 1.
        OSError: The .csv file cannot be written.

    Example:
        >>> from udmlss import cli
        >>> print(cli.check("photos"))  # doctest: +SKIP
    """
    check_integer("min_size", min_size, 1)
    path = None if out is None else output_file("out", out, ".csv")
    found = check_images(open_images(folder), min_size=min_size, progress=progress)
    if path is not None:
        found.save(path)
    return found


def dataset(
    name: Literal["cub200", "cars196", "sop", "inshop"],
    root: str | os.PathLike[str],
    *,
    unpack: bool = False,
    quick: bool = False,
    progress: bool = True,
) -> Verification:
    """Verify a copy of a published dataset.

    The numbers of images and classes are compared with the published ones, and every image is read.

    Args:
        name: Name of the dataset: "cub200", "cars196", "sop" or "inshop".
        root: Folder that contains the dataset or its archive.
        unpack: Whether to check and unpack the archive first.
        quick: Whether to skip reading the images, and to check only that they exist.
        progress: Whether to print what is done.

    Returns:
        The sizes of the splits, and the problems. The exit code of the command is 1 if there are problems.

    Raises:
        ValueError: `name` is not one of these datasets, `root` is not a folder, or the archive is missing, damaged or
            has another checksum.
        OSError: The archive cannot be read or unpacked.

    Example:
        >>> from udmlss import cli
        >>> print(cli.dataset("cub200", "data", unpack=True))  # doctest: +SKIP
    """
    check_choice("name", name, tuple(DATASETS))
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise value_error("`root` must be a folder", root, "Check the path")
    if unpack:
        unpack_archive(name, folder, progress=progress)
    return verify_copy(name, folder, quick=quick, progress=progress)


def open_images(
    folder: str | os.PathLike[str], *, skip_unreadable: bool = False, progress: bool = True
) -> Sequence[Path]:
    """Return the absolute paths of the images below a folder, or in a text, CSV or Parquet file.

    Args:
        folder: The folder or the file.
        skip_unreadable: Whether to read all files and to skip those that are not images.
        progress: Whether to show a progress bar while files are read.

    Raises:
        ValueError: `folder` does not exist or has no images, or a path is not valid Unicode or is listed twice.
        OSError: A file in a list of paths does not exist, or a folder cannot be read.
    """
    source = Path(folder).expanduser().absolute()
    if not source.is_dir() and (not source.exists() or source.suffix.lower() not in LIST_SUFFIXES):
        rule = "`folder` must be a folder of images, or a .txt, .csv, .tsv or .parquet file with their paths"
        if source.exists():
            raise value_error(rule, folder, "Pass the folder that contains the images; unpack an archive first")
        raise value_error(rule, f"{folder}, which does not exist", "Check the path")
    paths = find_images(source) if source.is_dir() else read_paths(source)
    check_unicode(paths)
    found: set[str] = set()  # a Path takes three times the memory
    for path in paths:
        name = os.path.normcase(path)
        if name in found:
            raise value_error("Each image must be listed once", f"{path} twice", f"Remove it from {folder}")
        found.add(name)
    return without_unreadable(paths, progress=progress) if skip_unreadable else paths


def without_unreadable(paths: Sequence[Path], *, progress: bool) -> Sequence[Path]:
    """Read all files, and return the paths of those that are images, with a warning that lists the others."""
    # JPEG files are read completely also at an eighth of their resolution, which is faster
    return ImageFiles(paths, min_size=1, on_error="skip", progress=progress).paths


@contextmanager
def advise_skipping() -> Iterator[None]:
    """Add the option that skips unreadable files to the error for one of them."""
    try:
        yield
    except OSError as error:
        message = message_of(error)
        if not is_unreadable(message):
            raise
        raise OSError(f"{message} Pass `skip_unreadable` to skip such files.") from error


def check_unicode(paths: Iterable[Path]) -> None:
    """Raise ValueError for all paths that are not valid Unicode, because a Parquet file could not hold them."""
    invalid = [ascii(str(path)) for path in paths if not _is_unicode(str(path))]
    if invalid:
        n_more = len(invalid) - _LISTED_PATHS
        found = ", ".join(invalid[:_LISTED_PATHS]) + (f" and {n_more} more" if n_more > 0 else "")
        raise value_error("A path must be valid Unicode", found, "Rename these files")


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
