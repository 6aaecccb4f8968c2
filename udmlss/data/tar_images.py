"""Datasets of images in tar files."""

import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from operator import index as as_index
from pathlib import Path, PurePosixPath
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from udmlss._checks import value_error
from udmlss._files import replace_file
from udmlss.data.archives import list_tar_members
from udmlss.data.image_reader import as_color, as_min_size, as_value_range, read_image
from udmlss.data.path_lists import IMAGE_SUFFIXES, PathList, as_path_list, is_image_name

_COMMAND_OF_MAGIC = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
_Positions = Int64[NDArray[np.int64], "m 2"]  # the offset and the size of each image


class TarImages(Dataset[tuple[Any, int]]):
    """Images in uncompressed tar files, such as those of WebDataset. An item is `(image, -1)`, as in `ImageFiles`.

    The positions of the images are read once, when the dataset is created; an image is read when its item is loaded.
    Any number of worker processes can read the same files. Other members, such as labels and captions, are ignored, and
    so are hidden files. Images are read as in `ImageFiles`.

    Args:
        archives: Path of each tar file.
        transform: Function that is applied to each RGB PIL image and should return a tensor. None returns the PIL
            image.
        cache_index: Whether to store the positions in a file next to each tar file, whose name ends in .index.npz, and
            to use this file as long as the size and the time of the tar file do not change. Otherwise, and with a
            warning if the file cannot be written, the headers of all members are read each time that a dataset is
            created.
        background: Color behind transparent pixels, as in `ImageFiles`.
        value_range: Values that become black and white in files with a single channel of more than 8 bits, as in
            `ImageFiles`.
        min_size: Shorter side in pixels that the transform needs, so that large JPEG images are decoded faster, as in
            `ImageFiles`.
        progress: Whether to show a progress bar while the positions are read.

    Attributes:
        paths: For each image the path of the tar file, followed by the name of the member. The order is that of the
            tar files and of their members.

    Raises:
        ValueError: A tar file is compressed or damaged, or none contains an image. `background` is not a color,
            `value_range` is not ascending, or `min_size` is below 1.
        TypeError: `archives` is one path instead of a sequence, `min_size` is not an integer, or `value_range` does not
            hold numbers.
        OSError: A tar file cannot be read. An image is damaged, which is found when the item is loaded.

    Example:
        >>> images = TarImages(sorted(Path("shards").glob("*.tar")), transform)  # doctest: +SKIP
    """

    def __init__(
        self,
        archives: Sequence[str | os.PathLike[str]],
        transform: Callable[[Any], Any] | None = None,
        *,
        cache_index: bool = False,
        background: str | Sequence[int] = (255, 255, 255),
        value_range: tuple[float, float] | None = None,
        min_size: int | None = None,
        progress: bool = True,
    ) -> None:
        self.transform = transform
        self.background = as_color(background)
        self.value_range = as_value_range(value_range)
        self.min_size = as_min_size(min_size)
        self._archives = as_path_list(archives, "archives")
        bar = tqdm(self._archives, "reading positions", unit="file", leave=False, disable=not progress)
        failures: list[OSError] = []
        indices = [_cached_index(archive, failures) if cache_index else _read_index(archive) for archive in bar]
        if failures:
            warnings.warn(
                f"The positions of the images could not be stored for {len(failures)} of {len(indices)} tar files, so "
                f"they are read again each time that a dataset is created: {failures[0]}",
                stacklevel=2,
            )
        if not any(names for names, _ in indices):
            rule = f"`archives` must contain images with the suffix {', '.join(sorted(IMAGE_SUFFIXES))}"
            raise value_error(rule, f"none in {len(indices)} files", "Pass tar files that contain images")
        self._positions: _Positions = np.concatenate([positions for _, positions in indices])
        self._archive_of = np.repeat(np.arange(len(indices)), [len(names) for names, _ in indices])
        self.paths: Sequence[Path] = PathList(
            archive / name for archive, (names, _) in zip(self._archives, indices, strict=True) for name in names
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        index = as_index(index)
        path = self.paths[index]
        offset, size = self._positions[index].tolist()
        # Opening a file takes much less time than reading an image, and processes must not share an open file.
        with self._archives[self._archive_of[index]].open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        image = read_image(path, self.background, self.value_range, content, self.min_size)
        return self.transform(image) if self.transform else image, -1

    def __repr__(self) -> str:
        return f"TarImages({len(self)} images in {len(self._archives)} tar files)"


def _read_index(archive: Path) -> tuple[list[str], _Positions]:
    """Return the names and positions of the images in a tar file."""
    _check_uncompressed(archive)
    members = [
        member
        for member in list_tar_members(archive)
        if member.isreg() and not member.issparse() and is_image_name(member.name) and not _is_hidden(member.name)
    ]
    positions = [(member.offset_data, member.size) for member in members]
    return [member.name for member in members], np.array(positions, np.int64).reshape(-1, 2)


def _check_uncompressed(archive: Path) -> None:
    with archive.open("rb") as file:
        start = file.read(max(map(len, _COMMAND_OF_MAGIC)))
    for magic, command in _COMMAND_OF_MAGIC.items():
        if start.startswith(magic):
            remedy = f"Decompress it: `{command} {archive}`"
            raise value_error("A tar file must be uncompressed to be read by position", archive, remedy)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _cached_index(archive: Path, failures: list[OSError]) -> tuple[list[str], _Positions]:
    """Return the result of `_read_index` from the file next to the tar file, which is written if necessary.

    An error of writing it is added to `failures`.
    """
    cache, state = archive.with_name(f"{archive.name}.index.npz"), archive.stat()
    stamp = np.array([state.st_size, state.st_mtime_ns])
    try:
        with np.load(BytesIO(cache.read_bytes()), allow_pickle=False) as stored:
            if np.array_equal(stored["stamp"], stamp):
                return _split(stored["names"].tobytes()), stored["positions"]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):  # absent or damaged
        pass
    names, positions = _read_index(archive)
    content = BytesIO()
    np.savez(content, names=np.frombuffer(_join(names), np.uint8), positions=positions, stamp=stamp)
    try:
        with replace_file(cache) as part:
            part.write_bytes(content.getvalue())
    except OSError as error:  # for example in a folder that is read-only
        failures.append(error)
    return names, positions


def _join(names: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def _split(block: bytes) -> list[str]:
    return [os.fsdecode(name) for name in block.split(b"\0")[:-1]]
