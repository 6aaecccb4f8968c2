"""Archives, unpacked whole or not at all."""

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

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    UnicodeDecodeError,  # of a name
    NotImplementedError,  # a kind of compression that this Python does not know
)


def unpack(archive: str | PathLike[str], folder: str | PathLike[str], *, progress: bool = True) -> None:
    """Unpack an archive into a folder, wholly or, if anything goes wrong, not at all.

    The names of all members are looked at before anything is written. They are unpacked into a new folder inside
    `folder` and moved up at the end, so that nothing half done is ever seen under its name.

    Args:
        archive: A .zip, .tar, .tar.gz or .tgz.
        folder: Where to; made if it is not there.
        progress: Show a progress bar.

    Raises:
        ValueError: The archive is of another kind, damaged or encrypted; a member is a link or a device or would
            leave `folder`; or `folder` already holds something of a member's name.
        OSError: The archive cannot be read or the folder not be written, as when the disk is full.

    Example:
        `unpack("CUB_200_2011.tgz", "data")`
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    if not archive.name.lower().endswith(_ENDINGS):
        raise value_error(
            f"An archive must end in one of {', '.join(_ENDINGS)}", archive, "Unpack it with its own program"
        )
    try:
        with _open(archive) as opened:
            members = _members(opened)
            tops = _check_members(archive, members)
            _check_free(archive, folder, tops)
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".unpacking-") as fresh:
                shown = tqdm(members, desc=archive.name, unit="file", disable=not progress)
                opened.extractall(fresh, members=shown)  # noqa: S202 (checked above)
                _move(Path(fresh), folder, tops)
    except _DAMAGE as error:
        raise value_error(f"{archive} must be a whole archive", error, "Download it again") from error


def check_md5(path: Path, md5: str) -> None:
    """Refuse a file whose MD5 is not the published one: it was cut short, or is another file by the same name."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise value_error(f"{path} must have the published MD5 {md5}", found, "Download it again")


def _open(archive: Path) -> Any:  # noqa: ANN401 (two classes with one use)
    name = archive.name.lower()
    if name.endswith(".zip"):
        return zipfile.ZipFile(archive)
    opened = tarfile.open(archive, "r:" if name.endswith(".tar") else "r:gz")  # noqa: SIM115 (the caller closes it)
    opened.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and before have none
    return opened


def _members(opened: Any) -> list[Any]:  # noqa: ANN401 (as above)
    if isinstance(opened, zipfile.ZipFile):
        return opened.infolist()
    members: list[Any] = opened.getmembers()
    # tarfile takes a damaged header for the end. The true end is two blocks of zeros, of which it has read one.
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a damaged header or no end")
    while opened.fileobj.read(1 << 20):  # at whose end gzip compares its checksum
        pass
    return members


def _check_members(archive: Path, members: Sequence[Any]) -> list[str]:
    """Refuse what must not be unpacked; return the names that the members lie below."""
    tops: dict[str, None] = {}
    for member in members:
        path = PureWindowsPath(_name(member))  # which splits at both kinds of slash and knows drives
        if path.drive or path.root or ".." in path.parts or not _is_plain(member):
            raise value_error(
                f"Every member of {archive} must be a file or a folder that stays where it is unpacked",
                repr(_name(member)),
                "Do not trust it; download it from its authors",
            )
        if isinstance(member, zipfile.ZipInfo) and member.flag_bits & 1:
            found, remedy = f"{member.filename} encrypted", "Unpack it with the password that its authors give"
            raise value_error(f"{archive} must open without a password", found, remedy)
        tops.update(dict.fromkeys(PurePosixPath(_name(member)).parts[:1]))
    return [*tops]


def _name(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name


def _is_plain(member: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    if isinstance(member, tarfile.TarInfo):
        return member.isfile() or member.isdir()  # a link's target may be a link: none is safe, and no data set has any
    return stat.S_IFMT(member.external_attr >> 16) in {0, stat.S_IFREG, stat.S_IFDIR}


def _check_free(archive: Path, folder: Path, tops: Sequence[str]) -> None:
    there = [str(folder / top) for top in tops if (folder / top).exists()]
    if there:
        raise value_error(
            f"{folder} must not hold yet what {archive.name} unpacks to",
            ", ".join(there),
            "Delete it or move it away",
        )


def _move(fresh: Path, folder: Path, tops: Sequence[str]) -> None:
    try:
        for top in tops:
            (fresh / top).rename(folder / top)
    except BaseException:
        for top in tops:
            if not (fresh / top).exists():
                (folder / top).rename(fresh / top)
        raise
