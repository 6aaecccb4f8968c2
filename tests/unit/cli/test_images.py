"""Images below a folder or in a list."""

import os
import sys

import pytest
import torch
from PIL import Image

from udmlss import cli
from udmlss.cli.images import UnlabeledImages, open_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with `photos`, which has two images and a file that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "deep/er/b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_a_folder_and_a_list_of_its_paths_have_the_same_absolute_paths(folder):
    expected = [folder / "photos" / name for name in ("a.png", "broken.png", "deep/er/b.png")]
    assert list(open_images("photos")) == expected
    (folder / "list.txt").write_text("photos/a.png\nphotos/broken.png\nphotos/deep/er/b.png\n")
    assert list(open_images("list.txt")) == expected


def test_unreadable_images_are_left_out_on_request_with_a_warning(folder):
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be read and are skipped: .*broken.png"):
        found = open_images("photos", skip_unreadable=True)
    assert [path.name for path in found] == ["a.png", "b.png"]


def test_a_path_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"`folder` must be a folder of images.*, got none, which does not exist"):
        open_images("none")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_a_name_that_no_table_could_hold_is_an_error(folder):
    name = os.fsdecode(b"photos/\xff.png")
    Image.new("RGB", (8, 8)).save(folder / "photos" / "c.png")
    (folder / "photos" / "c.png").rename(folder / name)
    with pytest.raises(ValueError, match=r"must be valid Unicode, got .*udcff"):
        open_images("photos")


def test_a_path_that_is_listed_twice_is_an_error(folder):
    (folder / "list.txt").write_text("photos/a.png\nphotos/a.png\n")
    with pytest.raises(ValueError, match=r"Each image must be listed once, got .*a\.png twice"):
        open_images("list.txt")


def test_items_are_transformed_images_without_a_label(folder):
    images = UnlabeledImages([folder / "photos" / "a.png"], lambda image: torch.tensor(image.size))
    assert len(images) == 1
    assert images[0].tolist() == [8, 8]


def test_large_photographs_are_decoded_at_a_lower_resolution(folder):
    Image.new("RGB", (640, 400)).save(folder / "photos" / "large.jpg")
    images = UnlabeledImages([folder / "photos" / "large.jpg"], lambda image: torch.tensor(image.size), min_size=90)
    assert images[0].tolist() == [160, 100]


def test_check_returns_and_writes_the_findings(folder):
    found = cli.check("photos", out="findings.csv", progress=False)
    assert [path.name for path in found.readable] == ["a.png", "b.png"]
    assert "broken" in str(found)
    assert (folder / "findings.csv").read_text().splitlines()[0] == "kind,path,detail"
