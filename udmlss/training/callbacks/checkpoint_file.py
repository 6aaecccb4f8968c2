"""Checkpoint files: written atomically, verified by a checksum, and limited in number."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udmlss._checks import value_error

FORMAT = 3


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep_last: int) -> Path:
    """Save a state as `step-<step>.pt`, and remove all but the newest checkpoints.

    The file is written under another name and renamed when it is complete. A second file with the ending ".sha256"
    holds its checksum in the format of the program `sha256sum`.

    Args:
        folder: Folder of the run's checkpoints.
        step: Number of optimizer steps that were taken.
        state: Tensors, numbers, strings, None, and dictionaries and lists of them. Numbers and arrays of NumPy are
            saved as numbers and tensors.
        keep_last: Number of checkpoints that are stored.

    Returns:
        The file.

    Raises:
        OSError: The file cannot be written. Earlier checkpoints are unchanged.
        TypeError: The state holds an object that cannot be loaded again without running code.
    """
    path = folder / f"step-{step:09d}.pt"
    part, checksum = path.with_suffix(".part"), _checksum_file(path)
    try:
        with part.open("wb") as file:
            torch.save({"format": FORMAT} | to_plain(state), file)
            file.flush()
            os.fsync(file.fileno())
        if not checkpoints(folder):
            _check_loadable(part)
        checksum.write_text(f"{_digest(part)}  {path.name}\n")
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a write fails
        part.unlink(missing_ok=True)
        message = f"The checkpoint {path} could not be written; earlier checkpoints are unchanged. {error}"
        raise OSError(message) from error
    for old in checkpoints(folder)[keep_last:]:
        old.unlink()
        _checksum_file(old).unlink(missing_ok=True)
    return path


def clear_unfinished(folder: Path) -> None:
    """Remove the files that a process left that was killed while writing."""
    for path in folder.glob("step-*.part"):
        path.unlink()
    for path in folder.glob("step-*.pt.sha256"):
        if not path.with_suffix("").exists():
            path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files in the folder, the newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or None if the folder has no checkpoint.

    Damaged files are renamed with the ending ".damaged", so that they do not count as checkpoints.

    Raises:
        ValueError: All checkpoints are damaged, or the newest has another format.
    """
    found = checkpoints(folder)
    for path in found:
        if _is_damaged(path):
            warnings.warn(f"{path} is damaged and is skipped; it is renamed to {path.name}.damaged.", stacklevel=2)
            path.rename(path.with_name(path.name + ".damaged"))
            continue
        _check_format(path)
        return path
    if found:
        rule = "A folder of checkpoints must hold an undamaged one"
        raise value_error(rule, f"{len(found)} damaged files in {folder}", "Start from scratch in another folder")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, with its tensors on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def to_plain(value: Any) -> Any:  # noqa: ANN401 (a tree of values)
    """Replace the numbers and arrays of NumPy in a tree of dictionaries, lists and tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {to_plain(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(to_plain, value)) if type(value) in {list, tuple} else value
    return value


def _check_loadable(path: Path) -> None:
    try:
        read_checkpoint(path)
    except Exception as error:
        path.unlink()
        raise TypeError(
            "The state of a run must consist of tensors, numbers, strings, None, and dictionaries and lists of them, "
            f"got an object that cannot be loaded again: {error} "
            "Convert it in the `state_dict` of the callback, labeler, optimizer or scheduler that holds it."
        ) from error


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_damaged(path: Path) -> bool:
    checksum = _checksum_file(path)
    return not checksum.exists() or checksum.read_bytes().split(b" ")[0] != _digest(path).encode()


def _check_format(path: Path) -> None:
    found = read_checkpoint(path).get("format")
    if found != FORMAT:
        rule = f"A checkpoint must have format {FORMAT}"
        raise value_error(rule, f"{found} in {path}", "Read it with the version of udmlss that wrote it")
