"""Lists of paths: in one block of memory, and in text, CSV and Parquet files."""

import csv
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import index as as_index
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, overload

import numpy as np

from udmlss._checks import type_error, value_error

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
LIST_SUFFIXES = (".txt", *_SEPARATORS, ".parquet")
_MAX_NAMES = 5  # in an error message
_ROWS_READ = 100  # to find the column with paths


class PathList(Sequence[Path]):
    """A sequence of paths in one block of memory, which data loader workers share with the main process.

    Args:
        paths: The paths. `~` at the beginning becomes the home folder.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        block, starts = bytearray(), array("q", [0])
        for path in paths:
            block += os.fsencode(os.path.expanduser(path))  # noqa: PTH111 (a Path takes several times as long)
            starts.append(len(block))
        self._bytes = bytes(block)
        self._starts = np.array(starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[as_index(index)]  # accepts negative indices and raises IndexError
        return Path(os.fsdecode(self._bytes[self._starts[number] : self._starts[number + 1]]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # as a list

    def __repr__(self) -> str:
        return repr(list(self))


def as_path_list(paths: Sequence[str | os.PathLike[str]], name: str) -> PathList:
    """Return a sequence of paths as one object.

    Args:
        paths: The paths.
        name: Name of the parameter.

    Raises:
        TypeError: `paths` is a single path instead of a sequence.
    """
    if isinstance(paths, str | os.PathLike):
        remedy = "Pass a list, or `find_images(folder)` for the images in a folder"
        raise type_error(f"`{name}` must be a sequence of paths", repr(str(paths)), remedy)
    return paths if isinstance(paths, PathList) else PathList(paths)


def is_image_name(name: str) -> bool:
    """Return whether a file name or path has the suffix of an image format that can be read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (a Path takes four times as long)


def short_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a file with that of its folder, because names may be numbers in each folder."""
    return Path(*Path(path).parts[-2:]).as_posix()


def read_paths(source: str | os.PathLike[str], column: str | None = None) -> Sequence[Path]:
    """Read the paths of images from a text, CSV or Parquet file.

    A relative path is relative to the folder of `source`, and `~` at its beginning is the home folder. Empty lines and
    cells are ignored. The order of the paths is retained.

    Args:
        source: Path of a .txt file with one path per line, of a .csv or .tsv file with a header, or of a .parquet
            file. Text is UTF-8.
        column: Name of the column that contains the paths. None takes the only column that contains paths of images.
            A text file has no columns.

    Returns:
        The paths, in one block of memory that data loader workers share.

    Raises:
        ValueError: `source` has another suffix or is damaged, has no such column or two of this name, or contains no
            paths. Without `column`, no column or several contain paths of images.
        FileNotFoundError: `source` or files that it lists do not exist. The message states their number and the first
            names.

    Example:
        >>> images = ImageFiles(read_paths("photos.csv", column="file_name"))  # doctest: +SKIP
    """
    source = Path(source).expanduser()
    kind = source.suffix.lower()
    if kind not in LIST_SUFFIXES:
        rule = f"A list of paths must have one of the suffixes {', '.join(LIST_SUFFIXES)}"
        raise value_error(rule, source, "Rename it, or pass the paths themselves to `ImageFiles`")
    if kind == ".txt" and column is not None:
        remedy = "Omit `column`, or write the paths to a CSV file with a header"
        raise value_error(f"`column` must be None for a text file such as {source}", repr(column), remedy)
    read = _read_parquet if kind == ".parquet" else _read_table if kind in _SEPARATORS else _read_text
    try:
        paths = PathList(_locate(read(source, column), source.parent))
    except (UnicodeDecodeError, csv.Error) as error:
        raise value_error(f"{source} must be a {kind} file in UTF-8", error, "Save it again as UTF-8") from error
    if not paths:
        raise value_error(f"{source} must contain at least one path", "none", "Check how the file was written")
    _check_exist(source, paths)
    return paths


def _locate(texts: Iterable[str], folder: Path) -> Iterator[str]:
    stripped = (text.strip() for text in texts)
    return (os.path.join(folder, os.path.expanduser(text)) for text in stripped if text)  # noqa: PTH111, PTH118 (faster)


def _read_text(source: Path, _column: str | None) -> Iterator[str]:
    with source.open(encoding="utf-8-sig") as file:
        yield from file


def _read_table(source: Path, column: str | None) -> Iterator[str]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=_SEPARATORS[source.suffix.lower()], strict=True)
        header = next(rows, [])
        if column is None and any(map(is_image_name, header)):
            found = f"{header[0]!r} in the first line"
            remedy = "Add a line with the names, or rename the file to .txt if it has one path per line"
            raise value_error(f"{source} must begin with the names of its columns", found, remedy)
        first = list(islice(rows, _ROWS_READ))
        examples = {name: [row[k] for row in first if k < len(row)] for k, name in enumerate(header)}
        name = _choose_column(source, examples, column)
        if header.count(name) > 1:
            rule = f"One column of {source} must be named {name!r}"
            raise value_error(rule, header.count(name), "Rename the others")
        number = header.index(name)
        yield from (row[number] for row in chain(first, rows) if number < len(row))


def _read_parquet(source: Path, column: str | None) -> Iterator[str]:
    import pyarrow as pa  # noqa: PLC0415 (takes long to import)
    from pyarrow import parquet  # noqa: PLC0415 (takes long to import)

    try:
        with parquet.ParquetFile(source) as file:
            first = next(file.iter_batches(_ROWS_READ), pa.RecordBatch.from_pylist([], file.schema_arrow))
            examples = {name: _texts(first.column(name)) for name in first.schema.names}
            name = _choose_column(source, examples, column)
            for batch in file.iter_batches(columns=[name]):
                yield from _texts(batch.column(0))
    except pa.ArrowInvalid as error:
        raise value_error(f"{source} must be a Parquet file", error, "Write it again") from error


def _texts(column: "pa.Array") -> list[str]:
    return [each for each in column.to_pylist() if isinstance(each, str)]


def _choose_column(source: Path, examples: dict[str, list[str]], column: str | None) -> str:
    """Return the name of the column that contains the paths.

    Args:
        source: Path of the table.
        examples: The first texts of each column.
        column: Name of the column. None takes the only column whose texts have the suffix of an image format.
    """
    if column is not None:
        if column not in examples:
            rule = f"`column` must be one of the columns {', '.join(map(repr, examples))} of {source}"
            raise value_error(rule, repr(column), "Pass the name of the column that contains the paths")
        return column
    found = [name for name, texts in examples.items() if texts and all(map(is_image_name, filter(None, texts)))]
    if len(found) != 1:
        listed = ", ".join(map(repr, found)) or f"none of {', '.join(map(repr, examples)) or 'no columns'}"
        rule = f"One column of {source} must contain paths of images"
        remedy = "Pass `column`, the name of the column that contains the paths, or write the paths to a .txt file"
        raise value_error(rule, listed, remedy)
    return found[0]


def _check_exist(source: Path, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 (`is_file` fails for long names)
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_NAMES])) + ", ..." * (len(missing) > _MAX_NAMES)
        found = f"{len(missing)} of {len(paths)} that do not: {listed}"
        remedy = f"Relative paths are relative to {source.parent.absolute()}"
        raise FileNotFoundError(f"Every file in {source} must exist, got {found}. {remedy}.")
