"""Files and folders that are replaced as a whole, and a lock of a folder."""

import errno
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import IO

from udmlss._checks import value_error

try:
    import fcntl
except ImportError:  # Windows has msvcrt instead
    fcntl = None  # type: ignore[assignment]


def output_file(name: str, path: str | os.PathLike[str], suffix: str) -> Path:
    """Return the path of an output file if it can be written, which is checked before work that takes long.

    Missing folders are created.

    Args:
        name: Name of the parameter.
        path: Path of the file. `~` at its beginning is the home folder.
        suffix: Required suffix in lowercase, so that a file of another kind is not replaced by mistake.

    Raises:
        ValueError: The file has another suffix, or is a folder, a device or a pipe.
        OSError: The file cannot be written.
    """
    found = Path(path).expanduser()
    if found.suffix.lower() != suffix:
        raise value_error(f"`{name}` must be a file with the suffix {suffix}", path, "Add the suffix")
    with temporary_file(found) as part:
        part.touch()
        part.unlink()
    return found


def output_target(path: Path) -> Path:
    """Return the file that is written for a path, which is the target of a link, so that the link is retained.

    Raises:
        ValueError: `path` is a folder, a device or a pipe.
    """
    if path.is_dir():
        raise value_error("An output file must not be a folder", path, f"Choose a file name, such as {path / 'output'}")
    if path.exists() and not path.is_file():
        found = f"{path}, which is a device or a pipe"
        raise value_error("An output file must be a regular file", found, "Choose a file name")
    return Path(os.path.realpath(path))


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file next to `path`, which is deleted if the block raises an error.

    Its name is that of `path` with a random part and the suffix ".part", so that several processes can write to the
    same path. Missing folders are created. If `path` is a link, the file is next to the target of the link.

    Raises:
        ValueError: `path` is a folder, a device or a pipe.
    """
    path = output_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _temporary_path(path, "part")
    try:
        yield part
    except BaseException:
        with suppress(OSError):  # the error of the block is the cause
            part.unlink(missing_ok=True)
        raise


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces the file `path` after the block.

    The file is on the disk before it gets its name. If the block or the replacement raises an error, the temporary file
    is deleted and `path` is unchanged. Missing folders are created. If `path` is a link, the target of the link is
    replaced and the link is retained.

    Raises:
        ValueError: `path` is a folder, a device or a pipe.
        OSError: The file cannot be written, for example to a full disk.
    """
    path = output_target(path)
    with temporary_file(path) as part:
        yield part
        _sync(part)
        part.replace(path)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary folder, which replaces `folder` after the block.

    If the block or the replacement raises an error, the temporary folder is deleted and `folder` is unchanged. Missing
    parents are created. Several processes can write to the same folder: the last one replaces the others.

    Raises:
        OSError: The folder cannot be written, for example to a full disk.
    """
    part, previous = _temporary_path(folder, "part"), _temporary_path(folder, "previous")
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            _sync(path)
        _replace(folder, part, previous)
    finally:
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        for each in (part, previous):
            rmtree(each, ignore_errors=True)


def _replace(folder: Path, part: Path, previous: Path) -> None:
    """Rename `part` to `folder`, and a folder of this name to `previous`."""
    while True:
        with suppress(FileNotFoundError):
            folder.rename(previous)  # a folder with files cannot be replaced in one step
        try:
            part.rename(folder)
        except OSError as error:  # another process has written the folder in the meantime
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            rmtree(previous, ignore_errors=True)
        else:
            return


def lock_folder(folder: Path) -> IO[str]:
    """Lock a folder until the returned file, `.lock`, is closed or the process ends.

    Processes that are started later do not hold the lock. If the file system has no locks, a warning is given.

    Raises:
        ValueError: Another process holds the lock.
        OSError: The folder does not exist or cannot be written to.
    """
    file = (folder / ".lock").open("a")
    try:
        _lock(file.fileno())
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            file.close()
            remedy = "Wait for the other process to end, or choose another folder"
            rule = "A folder must belong to one run at a time"
            raise value_error(rule, f"{folder}, which another process uses", remedy) from error
        warnings.warn(f"{folder} cannot be locked: {error}. Only one run at a time may use it.", stacklevel=2)
    return file


def _lock(descriptor: int) -> None:
    if fcntl is None:
        msvcrt = import_module("msvcrt")
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _temporary_path(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.{suffix}")


def _sync(path: Path) -> None:
    """Write a file from the memory of the operating system to the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
