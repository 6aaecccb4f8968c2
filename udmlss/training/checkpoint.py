"""A run's state in one file: whole or not at all, the newest few kept."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from udmlss._checks import value_error

FORMAT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, n_kept: int) -> Path:
    """Write the state beside its place and rename it there, then take away all but the newest.

    Args:
        folder: Where the run's checkpoints lie.
        step: Optimiser steps done, which name the file.
        state: Tensors, numbers, text, and dicts and lists of them.
        n_kept: How many stay.

    Returns:
        The file.

    Raises:
        OSError: The file cannot be written; those before it are as they were.
    """
    path = folder / f"step-{step:09d}.pt"
    beside = path.with_suffix(".part")
    try:
        with beside.open("wb") as file:
            torch.save({"format": FORMAT} | state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when a write fails
        beside.unlink(missing_ok=True)
        raise OSError(f"The checkpoint {path} could not be written; those before it are whole. {error}") from error
    for old in checkpoints(folder)[n_kept:]:
        old.unlink()
    return path


def clear_unfinished(folder: Path) -> None:
    """Take away what a kill in the middle of writing left."""
    for path in folder.glob("step-*.part"):
        path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Return the files of whole checkpoints in the folder, the newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that can be read; None if there is no file of any.

    Raises:
        ValueError: There are files and none can be read, or the newest is of another format.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            state = read_checkpoint(path)
        except Exception as error:  # noqa: BLE001 (torch raises anything at a damaged file)
            warnings.warn(f"{path} cannot be read and is passed over: {type(error).__name__}", stacklevel=2)
            continue
        _check_format(path, state)
        return path
    if found:
        raise value_error("One checkpoint at least must be readable", f"none of {len(found)} in {folder}", "Begin anew")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that a file holds, its tensors on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _check_format(path: Path, state: object) -> None:
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise value_error(
            f"A checkpoint must have format {FORMAT}", f"{found} in {path}", "Read it with its own version"
        )
