import io
import random
import tarfile
import zipfile

import pytest

from udmlss.data import archive, unpack

NOISE = random.Random(0).randbytes(20_000)  # noqa: S311 (which nothing can make smaller)
CONTENT = {"set/list.txt": b"1 one\n", "set/images/1.bin": NOISE, "beside.txt": b"more"}


def tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def pack(path, content=CONTENT):
    if path.suffix == ".zip":
        return zipped(path, content.items())
    return tar(
        path,
        [(tarfile.TarInfo(name), data) for name, data in content.items()],
        "w" if ".tar" in path.name[-4:] else "w:gz",
    )


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


def test_every_file_comes_out_as_it_went_in(archive, folder):
    (folder / "mine.txt").write_text("stays")
    unpack(archive, folder, progress=False)
    assert files_below(folder) == CONTENT | {"mine.txt": b"stays"}
    assert {path.name for path in folder.iterdir()} == {"set", "beside.txt", "mine.txt"}


def test_a_folder_that_is_not_there_is_made(archive, tmp_path):
    unpack(archive, tmp_path / "new" / "deep", progress=False)
    assert files_below(tmp_path / "new" / "deep") == CONTENT


def test_an_archive_cut_short_anywhere_is_refused_and_leaves_nothing(archive, folder):
    whole = archive.read_bytes()
    end = len(whole) if archive.suffix != ".tar" else whole.rindex(b"more") + 512  # then only zeros to fill a record
    for length in [0, 1, 100, 511, 512, 1024, *range(2000, end, 997), end - 1]:
        archive.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{archive} must be a whole archive, got .+\. Download it again\.$"):
            unpack(archive, folder, progress=False)
        assert not [*folder.iterdir()]


def test_an_archive_with_a_damaged_byte_is_refused_and_leaves_nothing(tmp_path, folder):
    for path in (pack(tmp_path / "a.zip"), pack(tmp_path / "a.tgz")):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="must be a whole archive"):
            unpack(path, folder, progress=False)
        assert not [*folder.iterdir()]


def test_a_zip_with_a_damaged_name_is_refused(tmp_path, folder):
    path = pack(tmp_path / "a.zip", {"é.txt": b"one"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xc3\xc3"))
    with pytest.raises(ValueError, match="must be a whole archive, got 'utf-8' codec"):
        unpack(path, folder, progress=False)


def test_a_damaged_header_is_not_taken_for_the_end_of_the_archive(tmp_path, folder):
    path = pack(tmp_path / "a.tar")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"beside.txt")] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="must be a whole archive, got a damaged header or no end"):
        unpack(path, folder, progress=False)


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


OUTSIDE = ["../x.txt", "set/../../x.txt", "/x.txt", "C:x.txt", "..\\x.txt", "\\\\host\\share\\x.txt"]
SPECIAL = [
    link("set/link", "../../x.txt", tarfile.SYMTYPE),
    link("set/link", "/etc/passwd", tarfile.SYMTYPE),
    link("set/link", "../x.txt", tarfile.LNKTYPE),
    link("set/inside", "list.txt", tarfile.SYMTYPE),
    link("set/device", "", tarfile.CHRTYPE),
    link("set/pipe", "", tarfile.FIFOTYPE),
]
INNOCENT = ("set/list.txt", b"1 one\n")


@pytest.mark.parametrize("member", [*map(tarfile.TarInfo, OUTSIDE), *SPECIAL], ids=lambda member: member.name)
def test_a_tar_with_a_member_that_would_leave_or_is_no_file_writes_nothing(tmp_path, folder, member):
    path = tar(tmp_path / "a.tgz", [(tarfile.TarInfo(INNOCENT[0]), INNOCENT[1]), (member, b"")])
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match="must be a file or a folder that stays where it is unpacked; found") as caught:
        unpack(path, folder, progress=False)
    assert repr(member.name) in str(caught.value)
    assert files_below(tmp_path) == before
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("name", [*OUTSIDE, "set/link"])
def test_a_zip_with_a_member_that_would_leave_or_is_a_link_writes_nothing(tmp_path, folder, name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (0o120777 if name == "set/link" else 0o100644) << 16
    path = zipped(tmp_path / "a.zip", [INNOCENT, (member, b"../../x.txt")])
    before = files_below(tmp_path)
    with pytest.raises(ValueError, match="must be a file or a folder that stays where it is unpacked; found"):
        unpack(path, folder, progress=False)
    assert files_below(tmp_path) == before


def test_an_encrypted_zip_is_refused_as_such(tmp_path, folder):
    path = pack(tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # the central directory's flag
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"must open without a password, got set/list\.txt encrypted\. Unpack it with"):
        unpack(path, folder, progress=False)
    assert not [*folder.iterdir()]


def test_what_is_there_already_is_left_alone(archive, folder):
    (folder / "set").mkdir()
    (folder / "set" / "half.bin").write_bytes(b"half")
    with pytest.raises(
        ValueError, match=rf"must not hold yet what {archive.name} unpacks to, got {folder}/set\. Delete"
    ):
        unpack(archive, folder, progress=False)
    assert files_below(folder) == {"set/half.bin": b"half"}


def test_an_interrupt_in_the_middle_leaves_nothing(archive, folder, monkeypatch):
    def interrupted(self, path, members):
        (archives.Path(path) / "set").mkdir()
        raise KeyboardInterrupt

    for opened in (tarfile.TarFile, zipfile.ZipFile):
        monkeypatch.setattr(opened, "extractall", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, folder, progress=False)
    assert not [*folder.iterdir()]


def test_an_interrupt_while_the_files_are_moved_up_leaves_nothing(archive, folder, monkeypatch):
    rename = archives.Path.rename

    def interrupted(self, target):
        if target == folder / "beside.txt":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(archives.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, folder, progress=False)
    assert not [*folder.iterdir()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_our_own_check_is_enough_where_tarfile_has_no_filters(tmp_path, folder, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    path = pack(tmp_path / "a.tgz")
    unpack(path, folder, progress=False)
    assert files_below(folder) == CONTENT


def test_another_kind_of_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"An archive must end in one of \.zip, .*, got .*a\.rar\. Unpack it with"):
        unpack(tmp_path / "a.rar", tmp_path)


def test_the_md5_of_a_file_is_held_against_the_published_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    archives.check_md5(path, "900150983cd24fb0d6963f7d28e17f72")  # RFC 1321, A.5
    path.write_bytes(b"ab")
    with pytest.raises(ValueError, match=rf"{path} must have the published MD5 9001.*, got 187ef4.*\. Download it"):
        archives.check_md5(path, "900150983cd24fb0d6963f7d28e17f72")
