"""Checkpoint files: written atomically, verified by a checksum, and limited in number."""

import hashlib
import pickle
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udmlss._checks import type_error, value_error
from udmlss._files import replace_file

FORMAT = 3


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep_last: int) -> Path:
    """Save a state as `step-<step>.pt`, and remove all but the newest checkpoints.

    The file is written under another name, read again, and renamed. A second file with the ending ".sha256" holds its
    checksum in the format of the program `sha256sum`; it is complete before the checkpoint is renamed.

    Args:
        folder: Folder of the run's checkpoints, which has none of this step.
        step: Number of optimizer steps that were taken.
        state: Tensors, numbers, strings, None, and dictionaries and lists of them. Numbers and arrays of NumPy are
            saved as numbers and tensors.
        keep_last: Number of checkpoints that are stored.

    Returns:
        The file.

    Raises:
        OSError: The file cannot be written. Earlier checkpoints are unchanged.
        TypeError: The state holds an object that cannot be loaded again without running code. Earlier checkpoints are
            unchanged.
    """
    path = folder / f"step-{step:09d}.pt"
    checksum, state = _checksum_file(path), to_plain(state)
    try:
        with replace_file(path) as part:
            _write_state(part, {"format": FORMAT} | state)
            with replace_file(checksum) as line:
                line.write_bytes(f"{_digest(part)}  {path.name}\n".encode())
    except BaseException as error:
        checksum.unlink(missing_ok=True)
        if isinstance(error.__context__, KeyboardInterrupt):  # torch raises RuntimeError if Ctrl-C interrupts a write
            raise error.__context__ from None
        if isinstance(error, OSError | RuntimeError):  # torch raises RuntimeError when a write fails
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            message = f"The checkpoint {path} could not be written; earlier checkpoints are unchanged. {cause}"
            raise OSError(message) from error
        raise
    for old in checkpoints(folder)[keep_last:]:
        old.unlink()
        _checksum_file(old).unlink(missing_ok=True)
    return path


def clear_unfinished(folder: Path) -> None:
    """Remove unfinished files of a process that was killed while it wrote them."""
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

    Newer, damaged files are renamed with the ending ".damaged", so that they do not count as checkpoints.

    Raises:
        ValueError: All checkpoints are damaged, or the newest has another format.
    """
    damaged: list[Path] = []
    for path in checkpoints(folder):
        if not _is_damaged(path):
            _check_format(path)
            for each in damaged:
                _set_aside(each)
            return path
        damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        rule = "A checkpoint must match the checksum in its .sha256 file"
        raise value_error(rule, f"none that does in {folder}: {names}", "Start from scratch in another folder")
    return None


def read_checkpoint(path: Path, *, map_file: bool = False) -> dict[str, Any]:
    """Return the state in a checkpoint, with its tensors on the CPU.

    Args:
        path: The file.
        map_file: Whether to map the file into memory, which does not read its tensors.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=map_file)
    return state


def to_plain(value: Any) -> Any:  # noqa: ANN401 (a tree of values)
    """Replace the numbers and arrays of NumPy in a tree of dictionaries, lists and tuples.

    Dictionaries without them are returned as they are, because the state dicts of modules have attributes.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        plain = {to_plain(key): to_plain(each) for key, each in value.items()}
        pairs = zip(plain.items(), value.items(), strict=True)
        unchanged = all(new is old for pair in pairs for new, old in zip(*pair, strict=True))
        return value if unchanged else plain
    if type(value) in {list, tuple}:
        return type(value)(map(to_plain, value))
    return value


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state and check that it can be loaded again."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
        read_checkpoint(path, map_file=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:  # pickle raises all three
        raise type_error(
            "The state of a run must consist of tensors, numbers, strings, None, and dictionaries and lists of them",
            _first_unloadable(state, "state") or str(error),
            "Convert it in the `state_dict` of the callback, labeler, optimizer or scheduler that holds it",
        ) from error


def _first_unloadable(value: Any, name: str) -> str | None:  # noqa: ANN401 (a tree of values)
    """Return name and type of the first object in a tree that cannot be loaded again, or None."""
    try:
        file = BytesIO()
        torch.save(value, file)
        torch.load(BytesIO(file.getvalue()), weights_only=True)
    except Exception:  # noqa: BLE001 (objects may raise anything when they are pickled)
        is_sequence = type(value) in {list, tuple}
        children = value.items() if isinstance(value, dict) else enumerate(value if is_sequence else ())
        found = (_first_unloadable(child, f"{name}[{key!r}]") for key, child in children)
        return next(filter(None, found), f"{name} of type {type(value).__name__}")
    return None


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_damaged(path: Path) -> bool:
    try:
        return _checksum_file(path).read_bytes().split(b" ")[0] != _digest(path).encode()
    except OSError:  # the checksum is missing, or the disk cannot read one of the two
        return True


def _set_aside(path: Path) -> None:
    damaged = path.with_name(path.name + ".damaged")
    path.rename(damaged)
    _checksum_file(path).unlink(missing_ok=True)
    warnings.warn(f"{path.name} does not match its checksum and was renamed to {damaged.name}.", stacklevel=2)


def _check_format(path: Path) -> None:
    found = read_checkpoint(path, map_file=True).get("format")
    if found != FORMAT:
        rule = f"A checkpoint must have format {FORMAT}"
        raise value_error(rule, f"{found} in {path}", "Read it with the version of udmlss that wrote it")
