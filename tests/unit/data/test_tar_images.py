import errno
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from udmlss import IndexedImages
from udmlss.data import TarImages


def encode(number, kind="png"):
    content = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 0, 0)).save(content, kind)
    return content.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Return two tar files of WebDataset, whose images have the red values 0 to 4."""
    paths = [tmp_path / f"{number}.tar" for number in range(2)]
    for path, numbers in zip(paths, ([0, 1, 2], [3, 4]), strict=True):
        with webdataset.TarWriter(str(path)) as writer:
            for number in numbers:
                image = Image.new("RGB", (6, 4), (number, 0, 0))
                writer.write({"__key__": f"photo{number}", "png": image, "json": {"caption": "a"}, "cls": 7})
    return paths


def red(image):
    return image.getpixel((0, 0))[0]


def test_the_images_of_webdataset_are_items_in_their_order(shards, tmp_path):
    images = TarImages(shards, red, progress=False)
    assert [images[index] for index in range(5)] == [(number, -1) for number in range(5)]
    assert images[np.int64(-1)] == (4, -1)
    assert images.paths[3] == tmp_path / "1.tar" / "photo3.png"
    assert repr(images) == "TarImages(5 images in 2 tar files)"
    with pytest.raises(IndexError):
        images[5]


def test_a_jpeg_is_decoded_at_the_lowest_resolution_that_min_size_permits(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (64, 40)).save(content, "jpeg")
    path = write_tar(tmp_path / "1.tar", {"a.jpg": content.getvalue(), "b.png": encode(1)})
    images = TarImages([path], min_size=9, progress=False)
    assert [image.size for image, _ in images] == [(16, 10), (6, 4)]


def as_tensor(image):
    return pil_to_tensor(image).float()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_several_processes_read_the_same_files(shards):
    images = pickle.loads(pickle.dumps(TarImages(shards, as_tensor, progress=False)))  # noqa: S301 (pickled here)
    loader = DataLoader(IndexedImages(images), batch_size=1, num_workers=2)
    assert [batch[0, 0, 0, 0].item() for batch, _ in loader] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_each_format_are_found_and_others_are_ignored(tmp_path, kind):
    path = tmp_path / "a.tar"
    long_name = "x" * 90 + "/" + "y" * 90 + "/é.png"
    with tarfile.open(path, "w", format=kind) as archive:
        for name in ("./b.png", long_name, "notes.txt", "._b.png", ".cache/b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(encode(7))
            archive.addfile(member, io.BytesIO(encode(7)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        archive.addfile(link)
    images = TarImages([path], red, progress=False)
    assert list(images.paths) == [path / "b.png", path / long_name]
    assert [images[0], images[1]] == [(7, -1), (7, -1)]


@pytest.mark.parametrize(("suffix", "command"), [("gz", "gzip -d"), ("bz2", "bzip2 -d"), ("xz", "xz -d")])
def test_a_compressed_file_is_an_error_with_the_command(tmp_path, suffix, command):
    path = write_tar(tmp_path / "a.tar", {"1.png": encode(1)}, f"w:{suffix}")
    with pytest.raises(
        ValueError, match=rf"must be uncompressed to be read by position, got {path}.*`{command} {path}`"
    ):
        TarImages([path], progress=False)


def test_damaged_files_and_files_without_images_are_errors(tmp_path, shards):
    content = shards[0].read_bytes()
    for damaged in (b"no archive", content[:1000], content[:1030] + b"x" + content[1031:]):
        shards[0].write_bytes(damaged)
        with pytest.raises(ValueError, match=r"0\.tar must be a complete tar file, got .*\. Copy or download it again"):
            TarImages(shards, progress=False)
    empty = write_tar(tmp_path / "empty.tar", {"1.txt": b"a"})
    with pytest.raises(
        ValueError, match=r"`archives` must contain images with the suffix \.avif, .*, got none in 1 files"
    ):
        TarImages([empty], progress=False)
    with pytest.raises(FileNotFoundError):
        TarImages([tmp_path / "missing.tar"], progress=False)


def test_a_damaged_image_is_an_error_with_its_path(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1.png": encode(1)[:-20], "2.png": encode(2)})
    images = TarImages([path], red, progress=False)
    with pytest.raises(OSError, match=rf"{path}/1\.png must be a complete image file"):
        images[0]
    assert images[1] == (2, -1)


def test_a_folder_that_cannot_be_written_to_has_no_cache_and_one_warning(shards, monkeypatch):
    def refuse(path, _content):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"could not be stored for 2 of 2 tar files.*Read-only") as warned:
            images = TarImages(shards, red, cache_index=True, progress=False)
        assert len(warned) == 1
        assert [images[index] for index in range(5)] == [(number, -1) for number in range(5)]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == ["0.tar", "1.tar"]


def test_positions_are_cached_until_the_file_changes(shards, monkeypatch):
    first = TarImages(shards, red, cache_index=True, progress=False)
    cache = shards[0].with_name("0.tar.index.npz")
    assert cache.is_file()
    monkeypatch.setattr("udmlss.data.tar_images.list_tar_members", lambda path: 1 / 0)
    second = TarImages(shards, red, cache_index=True, progress=False)
    assert (list(second.paths), [*map(second.__getitem__, range(5))]) == (
        list(first.paths),
        [*map(first.__getitem__, range(5))],
    )
    monkeypatch.undo()
    content = cache.read_bytes()
    flags = content.rindex(b"PK\x01\x02") + 8  # of a member in the directory of the file; the first bit means encrypted
    encrypted = content[:flags] + bytes([content[flags] | 1]) + content[flags + 1 :]
    for damage in (b"", content[:200], b"no file", encrypted):
        cache.write_bytes(damage)
        assert list(TarImages(shards, cache_index=True, progress=False).paths) == list(first.paths)
    write_tar(shards[0], {"new.png": encode(9)})
    os.utime(shards[0], ns=(0, 0))
    assert TarImages(shards, red, cache_index=True, progress=False)[0] == (9, -1)
    assert sorted(path.name for path in cache.parent.iterdir()) == [
        "0.tar",
        "0.tar.index.npz",
        "1.tar",
        "1.tar.index.npz",
    ]
