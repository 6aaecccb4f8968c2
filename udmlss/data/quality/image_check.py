"""A check of image files for damage, unusual formats and duplicates."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from multiprocessing.pool import ThreadPool
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from udmlss._checks import check_integer, value_error
from udmlss._files import replace_file
from udmlss.data.path_lists import PathList, as_path_list, short_name
from udmlss.data.quality.inspection import Inspection, inspect_file
from udmlss.data.quality.near_duplicates import THUMBNAIL_BYTES, find_near_duplicates

_TREATMENTS = {
    "broken": 'is an error, or skipped (`--skip-unreadable`, `on_error="skip"`)',
    "tiny": "is used as it is",
    "constant": "is used, although it contains nothing to learn",
    "16-bit": "is scaled to 8 bits",
    "transparent": "is composited onto white",
    "rotated": "is turned upright",
    "CMYK": "is converted to RGB, without the color profile",
    "palette": "is converted to RGB",
    "identical": "is used in addition to the earlier one",
    "near-duplicate": "is used in addition to the earlier one",
}
_PATHS_PER_TASK = 16
_MAX_BITS = 8  # with more bits, the compared parts of a hash are so short that most images have an equal part
_N_EXAMPLES = 3


class ImageFinding(NamedTuple):
    """A property of an image file that a user should know.

    Attributes:
        kind: "broken", "tiny", "constant", "16-bit", "transparent", "rotated", "CMYK", "palette", "identical" or
            "near-duplicate".
        path: Path of the file.
        detail: The reason, size, mode or orientation, or the path of an earlier duplicate.
    """

    kind: str
    path: Path
    detail: str


@dataclass(frozen=True)
class ImageCheck:
    """Result of `check_images`. `print` shows it as a table.

    Attributes:
        n_images: Number of images that were checked.
        findings: The findings, sorted by kind and then in the order of the images.
        readable: Paths of the images that can be read, in their order.
    """

    n_images: int
    findings: tuple[ImageFinding, ...]
    readable: Sequence[Path]

    @property
    def problems(self) -> tuple[ImageFinding, ...]:
        """The findings that are broken files."""
        return tuple(finding for finding in self.findings if finding.kind == "broken")

    def __str__(self) -> str:
        summary = f"{self.n_images} images checked, {len(self.readable)} can be read."
        if not self.findings:
            return f"{summary} Nothing unusual was found."
        header = ("kind", "images", "what the library does with it", "first")
        rows = [header, *(_describe(kind, [*found]) for kind, found in groupby(self.findings, attrgetter("kind")))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{kind:<{widths[0]}}  {number:>{widths[1]}}  {treatment:<{widths[2]}}  {names}"
            for kind, number, treatment, names in rows
        ]
        return "\n".join([summary, "", *lines])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the findings to a CSV file with the columns kind, path and detail.

        Args:
            path: Path of the file. Missing folders are created. An existing file is replaced after the new one has been
                written completely.

        Raises:
            ValueError: `path` is a folder, a device or a pipe.
            OSError: The file cannot be written.
        """
        with (
            replace_file(Path(path).expanduser()) as part,
            part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            csv.writer(file).writerows(chain([ImageFinding._fields], self.findings))


def check_images(
    paths: Sequence[str | os.PathLike[str]], *, min_size: int = 32, max_distance: int = 4, progress: bool = True
) -> ImageCheck:
    """Read images and find those that are damaged, unusual or duplicates.

    Files are read in several threads, as `ImageFiles` reads them. The findings are broken files, images whose shorter
    side is below `min_size`, images of one color, files with more than 8 bits per channel, with transparency, with an
    EXIF orientation, with CMYK colors or with a palette, identical files, and near-duplicates.

    Near-duplicates are found by the difference hash [1] and a comparison of thumbnails: copies of another size or
    compression, or with a border cut off by 1 %. They should be inspected. Photographs of different things are
    rarely among them, but small objects in front of a plain background often are.

    Args:
        paths: Path of each image, for example from `find_images` or `read_paths`.
        min_size: Shorter side in pixels below which an image is tiny.
        max_distance: Largest number of different bits, of 64, in the hashes of near-duplicates. 0 finds only those with
            the same hash, and the largest value is 8.
        progress: Whether to show a progress bar.

    Returns:
        The findings, and the paths of the readable images. The first of several duplicates is not
        a finding.

    Raises:
        ValueError: There are no paths, or a setting is out of range.
        TypeError: `paths` is one path instead of a sequence, or a setting is not an integer.
        OSError: There are too many open files, or an error of the disk.

    References:
        [1] N. Krawetz. Kind of Like That. hackerfactor.com, 2013.

    Example:
        >>> check = check_images(find_images("~/photos"))  # doctest: +SKIP
        >>> print(check)  # doctest: +SKIP
        >>> images = ImageFiles(check.readable, transform=transform)  # doctest: +SKIP
    """
    check_integer("min_size", min_size, 1)
    check_integer("max_distance", max_distance, 0, _MAX_BITS)
    paths = as_path_list(paths, "paths")
    if not paths:
        raise value_error("`paths` must contain at least one path", "none", "Check the folder or the list")
    findings: list[ImageFinding] = []
    readable, thumbnails, checksums = [], bytearray(), bytearray()

    def inspect(index: int) -> Inspection:
        return inspect_file(paths[index], min_size)

    with ThreadPool() as pool:
        inspections = pool.imap(inspect, range(len(paths)), _PATHS_PER_TASK)  # holds all arguments in memory
        bar = tqdm(inspections, "checking", len(paths), unit="image", leave=False, disable=not progress)
        for index, inspection in enumerate(bar):
            findings += [ImageFinding(kind, paths[index], detail) for kind, detail in inspection.findings]
            if inspection.checksum:
                readable.append(index)
                thumbnails += inspection.thumbnail
                checksums += inspection.checksum
    readable_paths = PathList(paths[index] for index in readable)
    findings += _find_duplicates(readable_paths, thumbnails, checksums, max_distance)
    order = [*_TREATMENTS]
    findings.sort(key=lambda finding: order.index(finding.kind))
    return ImageCheck(len(paths), tuple(findings), readable_paths)


def _find_duplicates(
    paths: PathList, thumbnails: bytearray, checksums: bytearray, max_distance: int
) -> Iterator[ImageFinding]:
    _, firsts, number = np.unique(np.frombuffer(checksums, np.uint64), return_index=True, return_inverse=True)
    first = firsts[number]
    for index in np.flatnonzero(first != np.arange(len(first))):
        yield ImageFinding("identical", paths[index], str(paths[first[index]]))
    rows = np.frombuffer(thumbnails, np.uint8).reshape(-1, THUMBNAIL_BYTES)
    # Images of one color and identical files have been found already.
    compared = np.sort(firsts[np.ptp(rows[firsts], axis=1) > 0])
    first = compared[find_near_duplicates(rows[compared], max_distance)]
    for index, earlier in zip(compared, first, strict=True):
        if earlier != index:
            yield ImageFinding("near-duplicate", paths[index], str(paths[earlier]))


def _describe(kind: str, findings: Sequence[ImageFinding]) -> tuple[str, str, str, str]:
    """Return the cells of a row of the table."""
    names = ", ".join(short_name(finding.path) for finding in findings[:_N_EXAMPLES])
    more = ", ..." if len(findings) > _N_EXAMPLES else ""
    return kind, str(len(findings)), _TREATMENTS[kind], names + more
