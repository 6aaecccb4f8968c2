import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from udmlss.data import archives, unpack

NOISE = random.Random(0).randbytes(20_000)  # noqa: S311 (bytes that cannot be compressed)
CONTENT = {"set/list.txt": b"1 one\n", "set/images/1.bin": NOISE, "more.txt": b"more"}


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def pack(path, content=CONTENT):
    if path.suffix == ".zip":
        return write_zip(path, content.items())
    members = [(tarfile.TarInfo(name), data) for name, data in content.items()]
    return write_tar(path, members, "w" if path.suffix == ".tar" else "w:gz")


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["a.zip", "a.tar", "a.tar.gz", "a.TGZ"])
def archive(request, tmp_path):
    return pack(tmp_path / request.param)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    return path


def test_unpacks_every_file_next_to_existing_ones(archive, folder):
    (folder / "existing.txt").write_text("existing")
    unpack(archive, folder, progress=False)
    assert files_below(folder) == CONTENT | {"existing.txt": b"existing"}
    assert {path.name for path in folder.iterdir()} == {"set", "more.txt", "existing.txt"}


def test_creates_the_folder_below_the_home_folder(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    unpack(f"~/{archive.name}", "~/new/deep", progress=False)
    assert files_below(tmp_path / "new" / "deep") == CONTENT


def test_unpacks_a_tar_with_a_member_for_the_current_folder(tmp_path, folder):
    current = tarfile.TarInfo(".")
    current.type = tarfile.DIRTYPE
    members = [(current, b""), (tarfile.TarInfo("./set/list.txt"), b"1 one\n")]
    unpack(write_tar(tmp_path / "a.tgz", members), folder, progress=False)
    assert files_below(folder) == {"set/list.txt": b"1 one\n"}


def test_rejects_truncated_archives_and_writes_nothing(archive, folder):
    whole = archive.read_bytes()
    # After the last member a tar file contains only zeros.
    end = len(whole) if archive.suffix != ".tar" else whole.rindex(b"more") + 512
    for length in [0, 1, 100, 511, 512, 1024, *range(2000, end, 997), end - 1]:
        archive.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{archive} must be a complete archive, got .+\. Download it again\.$"):
            unpack(archive, folder, progress=False)
        assert not [*folder.iterdir()]


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_rejects_a_damaged_byte_and_writes_nothing(tmp_path, folder, name):
    path = pack(tmp_path / name)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="must be a complete archive"):
        unpack(path, folder, progress=False)
    assert not [*folder.iterdir()]


def test_rejects_a_zip_with_a_damaged_name(tmp_path, folder):
    path = pack(tmp_path / "a.zip", {"é.txt": b"one"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xc3\xc3"))
    with pytest.raises(ValueError, match="must be a complete archive, got 'utf-8' codec"):
        unpack(path, folder, progress=False)


def test_a_damaged_header_is_not_taken_for_the_end_of_the_archive(tmp_path, folder):
    path = pack(tmp_path / "a.tar")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"more.txt")] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="must be a complete archive, got a damaged header or no end marker"):
        unpack(path, folder, progress=False)


def special_member(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


OUTSIDE = ["../x.txt", "set/../../x.txt", "/x.txt", "C:x.txt", "..\\x.txt", "\\\\host\\share\\x.txt"]
SPECIAL = [
    special_member("set/link", "../../x.txt", tarfile.SYMTYPE),
    special_member("set/link", "/etc/passwd", tarfile.SYMTYPE),
    special_member("set/link", "../x.txt", tarfile.LNKTYPE),
    special_member("set/inside", "list.txt", tarfile.SYMTYPE),
    special_member("set/device", "", tarfile.CHRTYPE),
    special_member("set/pipe", "", tarfile.FIFOTYPE),
]
HARMLESS = ("set/list.txt", b"1 one\n")
RULE = "must be a file or folder with a path inside the target folder, got "


@pytest.mark.parametrize("member", [*map(tarfile.TarInfo, OUTSIDE), *SPECIAL], ids=lambda member: member.name)
def test_rejects_a_tar_with_a_path_outside_or_a_special_member_and_writes_nothing(tmp_path, folder, member):
    path = write_tar(tmp_path / "a.tgz", [(tarfile.TarInfo(HARMLESS[0]), HARMLESS[1]), (member, b"")])
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match=RULE) as caught:
        unpack(path, folder, progress=False)
    assert repr(member.name) in str(caught.value)
    assert files_below(tmp_path) == before
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("name", [*OUTSIDE, "set/link"])
def test_rejects_a_zip_with_a_path_outside_or_a_link_and_writes_nothing(tmp_path, folder, name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (0o120777 if name == "set/link" else 0o100644) << 16
    path = write_zip(tmp_path / "a.zip", [HARMLESS, (member, b"../../x.txt")])
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match=RULE):
        unpack(path, folder, progress=False)
    assert files_below(tmp_path) == before
    assert not [*folder.iterdir()]


def test_rejects_an_encrypted_zip(tmp_path, folder):
    path = pack(tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # the flag is in the central directory
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"must not be encrypted, got the encrypted member set/list\.txt\. Unpack it"):
        unpack(path, folder, progress=False)
    assert not [*folder.iterdir()]


def test_existing_members_are_not_overwritten(archive, folder):
    (folder / "set").mkdir()
    (folder / "set" / "half.bin").write_bytes(b"half")
    with pytest.raises(ValueError, match=rf"not contain members of {archive.name} yet, got {folder}/set\. Delete"):
        unpack(archive, folder, progress=False)
    assert files_below(folder) == {"set/half.bin": b"half"}


def test_an_interrupt_during_unpacking_leaves_no_files(archive, folder, monkeypatch):
    def interrupt(self, path, members):
        (Path(path) / "set").mkdir()
        raise KeyboardInterrupt

    for kind in (tarfile.TarFile, zipfile.ZipFile):
        monkeypatch.setattr(kind, "extractall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, folder, progress=False)
    assert not [*folder.iterdir()]


def test_an_interrupt_while_moving_leaves_no_files(archive, folder, monkeypatch):
    rename = Path.rename

    def interrupt(self, target):
        if target == folder / "more.txt":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, folder, progress=False)
    assert not [*folder.iterdir()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unpacks_a_tar_with_a_version_of_python_that_has_no_filters(tmp_path, folder, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    unpack(pack(tmp_path / "a.tgz"), folder, progress=False)
    assert files_below(folder) == CONTENT


def test_rejects_another_kind_of_archive(tmp_path):
    with pytest.raises(ValueError, match=r"`archive` must end in one of \.zip, .*, got .*a\.rar\. Unpack it yourself"):
        unpack(tmp_path / "a.rar", tmp_path)


def test_check_md5_rejects_another_checksum(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    archives.check_md5(path, "900150983cd24fb0d6963f7d28e17f72")  # RFC 1321, A.5
    path.write_bytes(b"ab")
    with pytest.raises(ValueError, match=rf"{path} must have the published MD5 9001.*, got 187ef4.*\. Download it"):
        archives.check_md5(path, "900150983cd24fb0d6963f7d28e17f72")
