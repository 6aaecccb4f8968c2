"""The folder of a saved index: arrays, the file of faiss, and a description with a checksum of each file."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udmlss._checks import value_error
from udmlss._files import replace_folder

_DESCRIPTION = "index.json"
_FORMAT = {"format": "udmlss search index", "version": 1}
_BYTES = 2**20  # number of bytes that are read at once
_SUFFIX_OF_FAISS = ".faiss"


def write_index(folder: Path, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an index to a new folder, which then replaces `folder`.

    Args:
        folder: The folder.
        settings: Further entries of the description.
        arrays: Arrays by the name of their file, .npy or, for the bytes of an index of faiss, .faiss.

    Raises:
        ValueError: `folder` is a file, or a folder with other files.
        OSError: Writing failed. A previous index is unchanged.
    """
    folder = folder.resolve()  # a link is retained, and the folder that it points to is replaced
    if (other := _other_file(folder)) is not None:
        rule = "`folder` must be new, empty, or the folder of an index, which is replaced"
        raise value_error(rule, other, "Choose another folder")
    with replace_folder(folder) as part:
        for name, array in arrays.items():
            if name.endswith(_SUFFIX_OF_FAISS):
                array.tofile(part / name)
            else:
                np.save(part / name, array, allow_pickle=False)
        checksums = {name: _checksum(part / name) for name in arrays}
        description = {**_FORMAT, "settings": dict(settings), "checksums": checksums}
        (part / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _other_file(folder: Path) -> Path | None:
    """Return a file that no index has, the folder itself or a file in it that is not hidden, or None."""
    if not folder.is_dir():
        return folder if folder.exists() else None
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    try:
        own = {_DESCRIPTION, *_description(folder)["checksums"]}
    except ValueError:
        own = set()
    return next((folder / name for name in names if name not in own), None)


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the settings and the arrays that `write_index` wrote.

    Raises:
        ValueError: The folder has no index, or a file is missing or has changed.
    """
    description = _description(folder)
    arrays = {name: _array(folder / name, checksum) for name, checksum in description["checksums"].items()}
    return description["settings"], arrays


def _description(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_an_index(f"{folder}: {error}") from error
    if not isinstance(found, dict) or found.keys() != {*_FORMAT, "settings", "checksums"}:
        raise _not_an_index(f"{folder}, whose {_DESCRIPTION} has another format")
    if any(found[key] != value for key, value in _FORMAT.items()):
        raise _not_an_index(f"format {found['format']!r}, version {found['version']!r}")
    settings, checksums = found["settings"], found["checksums"]
    are_dicts = isinstance(settings, dict) and isinstance(checksums, dict)
    if not are_dicts or any(Path(name).name != name for name in checksums):  # a file elsewhere is not of this index
        raise _not_an_index(f"{folder}, whose {_DESCRIPTION} is damaged")
    return found


def _not_an_index(found: str) -> ValueError:
    remedy = "Pass the folder of an index, or build a new index and save it to a new folder"
    return value_error("`folder` must be a folder that `SearchIndex.save` wrote", found, remedy)


def _array(path: Path, checksum: int) -> NDArray[Any]:
    rule = f"`folder` must have the file {path.name} that `SearchIndex.save` wrote"
    remedy = "Build the index again and save it"
    if not path.is_file():
        raise value_error(rule, f"{path.parent} without it", remedy)
    if _checksum(path) != checksum:
        raise value_error(rule, f"{path} with another checksum, so it is damaged or belongs to another index", remedy)
    if path.suffix == _SUFFIX_OF_FAISS:
        return np.fromfile(path, dtype=np.uint8)
    try:
        found: NDArray[Any] = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise value_error(rule, f"{path}: {error}", remedy) from error
    return found


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(_BYTES):
            checksum = zlib.crc32(part, checksum)
    return checksum
