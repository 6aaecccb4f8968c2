"""Checksums and safe unpacking of archives."""

import gzip
import hashlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from udmlss._checks import value_error

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_DAMAGE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    UnicodeDecodeError,  # the name of a member is damaged
    NotImplementedError,  # this version of Python does not support the compression method
)


def unpack(archive: str | PathLike[str], folder: str | PathLike[str], *, progress: bool = True) -> None:
    """Unpack an archive into a folder, either completely or not at all.

    All members are checked before anything is written. They are unpacked into a temporary folder inside `folder` and
    moved to their final paths at the end.

    Args:
        archive: Path of a .zip, .tar, .tar.gz or .tgz file.
        folder: Path of the folder to unpack into. It is created if it does not exist.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The archive has another suffix, or is damaged or encrypted. A member is a link or a device, has a
            path outside of `folder`, or already exists in `folder`.
        OSError: The archive cannot be read, or `folder` cannot be written.

    Example:
        >>> unpack("CUB_200_2011.tgz", "data")  # doctest: +SKIP
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    if not archive.name.lower().endswith(_SUFFIXES):
        raise value_error(f"`archive` must end in one of {', '.join(_SUFFIXES)}", archive, "Unpack it yourself")
    try:
        with _open(archive) as opened:
            members = _list_members(opened)
            _check_members(archive, members)
            names = _top_level_names(members)
            _check_absent(archive, folder, names)
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary:
                bar = tqdm(members, desc=archive.name, unit="file", disable=not progress)
                opened.extractall(temporary, members=bar)  # noqa: S202 (the members have been checked)
                _move(Path(temporary), folder, names)
    except _DAMAGE_ERRORS as error:
        raise value_error(f"{archive} must be a complete archive", error, "Download it again") from error


def check_md5(path: Path, md5: str) -> None:
    """Raise ValueError unless a file has an MD5 checksum, given in hexadecimal digits."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise value_error(f"{path} must have the published MD5 {md5}", found, "Download it again")


def list_tar_members(archive: Path) -> list[tarfile.TarInfo]:
    """Return the members of an uncompressed tar file.

    Raises:
        ValueError: The file is not a tar file, is truncated, or has a damaged header.
    """
    try:
        with tarfile.open(archive, "r:") as opened:
            return _list_members(opened)
    except _DAMAGE_ERRORS as error:
        raise value_error(f"{archive} must be a complete tar file", error, "Copy or download it again") from error


def _open(archive: Path) -> Any:  # noqa: ANN401 (ZipFile and TarFile have no common base class)
    name = archive.name.lower()
    if name.endswith(".zip"):
        return zipfile.ZipFile(archive)
    opened = tarfile.open(archive, "r:" if name.endswith(".tar") else "r:gz")  # noqa: SIM115 (the caller closes it)
    opened.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have no filters
    return opened


def _list_members(opened: Any) -> list[Any]:  # noqa: ANN401 (a ZipFile or a TarFile)
    if isinstance(opened, zipfile.ZipFile):
        return opened.infolist()
    members: list[Any] = opened.getmembers()
    # tarfile takes a damaged header for the end of the archive. The end is marked by two blocks of zeros, and tarfile
    # has read the first of them.
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a damaged header or no end marker")
    while opened.fileobj.read(1 << 20):  # gzip compares the checksum at the end of the file
        pass
    return members


def _check_members(archive: Path, members: Sequence[zipfile.ZipInfo | tarfile.TarInfo]) -> None:
    for member in members:
        path = PureWindowsPath(_name(member))  # splits at slashes and backslashes, and recognizes drives
        if path.drive or path.root or ".." in path.parts or not _is_file_or_folder(member):
            raise value_error(
                f"Every member of {archive} must be a file or folder with a path inside the target folder",
                repr(_name(member)),
                "Do not trust this archive; download it from the authors of the dataset",
            )
        if isinstance(member, zipfile.ZipInfo) and member.flag_bits & 1:
            found = f"the encrypted member {member.filename}"
            raise value_error(f"{archive} must not be encrypted", found, "Unpack it yourself with its password")


def _name(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name


def _is_file_or_folder(member: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    if isinstance(member, tarfile.TarInfo):
        return member.isfile() or member.isdir()  # tarfile's filter allows some links, but no dataset needs any
    return stat.S_IFMT(member.external_attr >> 16) in {0, stat.S_IFREG, stat.S_IFDIR}


def _top_level_names(members: Sequence[zipfile.ZipInfo | tarfile.TarInfo]) -> list[str]:
    # The path of the member "." has no parts.
    return list(dict.fromkeys(name for member in members for name in PurePosixPath(_name(member)).parts[:1]))


def _check_absent(archive: Path, folder: Path, names: Sequence[str]) -> None:
    existing = [str(folder / name) for name in names if (folder / name).exists()]
    if existing:
        rule = f"{folder} must not contain members of {archive.name} yet"
        raise value_error(rule, ", ".join(existing), "Delete or move them")


def _move(source: Path, target: Path, names: Sequence[str]) -> None:
    """Move files and folders; if this fails or is interrupted, move them back."""
    try:
        for name in names:
            (source / name).rename(target / name)
    except BaseException:
        for name in names:
            if not (source / name).exists():
                (target / name).rename(source / name)
        raise
