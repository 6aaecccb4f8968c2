"""Attacks with random damage to images, archives, annotations and links."""

import io
import os
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from udmlss import data

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
FORMATS = {
    "a.jpg": {},
    "a.png": {},
    "a.webp": {},
    "lossless.webp": {"lossless": True},
    "a.tif": {},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "lzw.tif": {"compression": "tiff_lzw"},
    "a.bmp": {},
    "a.gif": {},
    "a.ppm": {},
    "a.jp2": {},
    "a.avif": {},
}


def change(content, generator):
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        changed[generator.randrange(len(changed))] ^= generator.randint(1, 255)
    return bytes(changed)


def truncate(content, generator):
    return content[: generator.randrange(len(content))]


@pytest.mark.slow(attack="images")
@pytest.mark.parametrize("damage", [change, truncate])
def test_a_damaged_image_raises_an_error_with_its_path(tmp_path, attack, damage):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    columns, rows = np.meshgrid(np.arange(32) * 8, np.arange(32) * 8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for name, options in FORMATS.items():
        path = tmp_path / name
        image = Image.fromarray(np.stack([columns, rows, 255 - rows], 2).astype(np.uint8))
        image.save(path, **options, **({"exif": exif} if path.suffix in {".jpg", ".png", ".webp", ".tif"} else {}))
        content, intact = path.read_bytes(), np.asarray(data.ImageFiles([path], [-1], [])[0][0])
        may_have_other_pixels = path.suffix == ".jp2" or (damage is change and path.suffix != ".png")
        for number in range(100):
            path.write_bytes(damage(content, generator))
            with attack.attempt(f"{damage.__name__} {name}, number {number}"):
                try:
                    found = np.asarray(data.ImageFiles([path], [-1], [])[0][0])
                except OSError as error:
                    assert str(path) in str(error)  # noqa: PT017 (not every damage is an error)
                else:
                    assert may_have_other_pixels or np.array_equal(found, intact)


def write_archive(path):
    content = {"set/list.txt": b"1 one\n", "set/1.bin": random.Random(1).randbytes(3000), "more.txt": b"more"}  # noqa: S311
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in content.items():
                archive.writestr(name, value)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, value in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(value)
                archive.addfile(member, io.BytesIO(value))
    return content


@pytest.mark.slow(attack="archives")
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("damage", [change, truncate])
def test_a_damaged_archive_is_unpacked_completely_or_not_at_all(tmp_path, attack, name, damage):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    path, folder = tmp_path / name, tmp_path / "out"
    expected = write_archive(path)
    content = path.read_bytes()
    for number in range(150):
        path.write_bytes(damage(content, generator))
        folder.mkdir()
        with attack.attempt(f"{damage.__name__} {name}, number {number}"):
            try:
                data.unpack(path, folder, progress=False)
            except (ValueError, OSError):
                assert not [*folder.iterdir()]
            else:
                found = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
                assert path.suffix == ".tar" or sorted(found) == sorted(expected.values())
            assert sorted(tmp_path.iterdir()) == [path, folder]
        shutil.rmtree(folder)


@pytest.mark.slow(attack="annotations")
@pytest.mark.parametrize(
    ("name", "annotations"),
    [
        ("cars196", "cars_annos.mat"),
        ("cub200", "images.txt"),
        ("cub200", "classes.txt"),
        ("sop", "Ebay_train.txt"),
        ("inshop", "Eval/list_eval_partition.txt"),
    ],
)
@pytest.mark.parametrize("damage", [change, truncate])
def test_damaged_annotations_are_rejected_or_stay_in_the_folder(tmp_path, attack, name, annotations, damage):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    path = getattr(layouts, name)(tmp_path) / annotations
    content = path.read_bytes()
    for number in range(200):
        path.write_bytes(damage(content, generator))
        with attack.attempt(f"{damage.__name__} {annotations}, number {number}"):
            try:
                images = getattr(data, name)(tmp_path, "train")
            except ValueError:
                continue
            assert all(file.resolve().is_relative_to(tmp_path.resolve()) for file in images.paths)


def write_tree(root, generator, n_links, *, cycles):
    """Write a random tree of folders with images and links; without cycles a link leads to a later folder."""
    folders = [root / f"class{number}" for number in range(3)]
    for number in range(6):
        folders.append(generator.choice(folders) / f"folder{number}")
    for number, folder in enumerate(folders):
        layouts.save_image(folder / f"{number}.png", number)
    for number in range(n_links):
        source, target = generator.sample(range(len(folders)), 2)
        if not cycles:
            source, target = sorted((source, target))
            if any(path.is_symlink() for path in folders[target].rglob("*")):
                continue
        (folders[source] / f"link{number}").symlink_to(folders[target])


@pytest.mark.slow(attack="links")
def test_linked_folders_are_opened_as_torchvision_opens_them(tmp_path, attack):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    for number in range(100):
        root = tmp_path / str(number)
        write_tree(root, generator, 2, cycles=False)
        with attack.attempt(f"tree {number}"):
            expected = ImageFolder(str(root)).samples
            images = data.image_folder(root)
            assert sorted(zip(images.paths, images.labels.tolist(), strict=True)) == sorted(
                (Path(path), label) for path, label in expected
            )


@pytest.mark.slow(attack="links")
def test_folders_with_cycles_of_links_end_and_hold_every_image(tmp_path, attack):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    for number in range(100):
        root = tmp_path / str(number)
        write_tree(root, generator, 4, cycles=True)
        with attack.attempt(f"tree {number} with cycles"):
            paths = data.image_folder(root).paths
            assert len(set(paths)) == len(paths)
            images = root.rglob("*.png")
            assert {os.path.realpath(path) for path in paths} == {os.path.realpath(path) for path in images}
