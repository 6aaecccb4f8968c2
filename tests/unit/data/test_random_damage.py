"""Attacks with random damage. Run them with `pytest -m slow -s` to see the counts."""

import io
import os
import random
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from udmlss import data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"),
]
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


@pytest.fixture
def report(capsys):
    def print_counts(what, counts):
        with capsys.disabled():
            ends = ", ".join(f"{count} {end}" for end, count in counts.items())
            print(f"\n{what}: {sum(counts.values())} tried, {ends}")  # noqa: T201 (for the reader of -s)

    return print_counts


def change(content, generator):
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        changed[generator.randrange(len(changed))] ^= generator.randint(1, 255)
    return bytes(changed)


def truncate(content, generator):
    return content[: generator.randrange(len(content))]


@pytest.mark.parametrize("damage", [change, truncate])
def test_a_damaged_image_raises_an_error_with_its_path(tmp_path, report, damage):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    columns, rows = np.meshgrid(np.arange(32) * 8, np.arange(32) * 8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for name, options in FORMATS.items():
        path = tmp_path / name
        image = Image.fromarray(np.stack([columns, rows, 255 - rows], 2).astype(np.uint8))
        image.save(path, **options, **({"exif": exif} if path.suffix in {".jpg", ".png", ".webp", ".tif"} else {}))
        content, intact = path.read_bytes(), np.asarray(data.ImageFiles([path], [-1], [])[0][0])
        counts = Counter()
        for _ in range(100):
            path.write_bytes(damage(content, generator))
            try:
                found = np.asarray(data.ImageFiles([path], [-1], [])[0][0])
            except OSError as error:
                assert str(path) in str(error)  # noqa: PT017 (not every damage is an error)
                counts["named"] += 1
            else:
                counts["with the same pixels" if np.array_equal(found, intact) else "with other pixels"] += 1
        report(f"{damage.__name__} {name}", counts)
        assert name != "a.png" or not counts["with other pixels"]
        assert damage is change or path.suffix == ".jp2" or not counts["with other pixels"]


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


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("damage", [change, truncate])
def test_a_damaged_archive_is_unpacked_completely_or_not_at_all(tmp_path, report, name, damage):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    path, folder = tmp_path / name, tmp_path / "out"
    expected = write_archive(path)
    content, counts = path.read_bytes(), Counter()
    for _ in range(150):
        path.write_bytes(damage(content, generator))
        folder.mkdir()
        try:
            data.unpack(path, folder, progress=False)
        except (ValueError, OSError):
            counts["rejected"] += 1
            assert not [*folder.iterdir()]
        else:
            found = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
            counts["unpacked" if sorted(found) == sorted(expected.values()) else "unpacked with other content"] += 1
        assert sorted(tmp_path.iterdir()) == [path, folder]
        shutil.rmtree(folder)
    report(f"{damage.__name__} {name}", counts)
    assert path.suffix == ".tar" or not counts["unpacked with other content"]


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
def test_damaged_annotations_are_rejected_or_stay_in_the_folder(tmp_path, report, name, annotations, damage):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    path = getattr(layouts, name)(tmp_path) / annotations
    content, counts = path.read_bytes(), Counter()
    for _ in range(200):
        path.write_bytes(damage(content, generator))
        try:
            images = getattr(data, name)(tmp_path, "train")
        except ValueError:
            counts["rejected"] += 1
        else:
            counts["opened"] += 1
            assert all(file.resolve().is_relative_to(tmp_path.resolve()) for file in images.paths)
    report(f"{damage.__name__} {name} {annotations}", counts)


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


def test_linked_folders_are_opened_as_torchvision_opens_them(tmp_path, report):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    for number in range(100):
        root = tmp_path / str(number)
        write_tree(root, generator, 2, cycles=False)
        expected = ImageFolder(str(root)).samples
        images = data.image_folder(root)
        assert sorted(zip(images.paths, images.labels.tolist(), strict=True)) == sorted(
            (Path(path), label) for path, label in expected
        )
    report("folders with links", Counter({"as torchvision opens them": 100}))


def test_folders_with_cycles_of_links_end_and_hold_every_image(tmp_path, report):
    generator = random.Random(0)  # noqa: S311 (no secrets)
    for number in range(100):
        root = tmp_path / str(number)
        write_tree(root, generator, 4, cycles=True)
        paths = data.image_folder(root).paths
        assert len(set(paths)) == len(paths)
        assert {os.path.realpath(path) for path in paths} == {os.path.realpath(path) for path in root.rglob("*.png")}
    report("folders with cycles of links", Counter({"opened": 100}))
