"""Thumbnails show each kind of item as an image viewer would, and never raise an error for one image."""

import base64
import tarfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from udmlss.data import ImageFiles, TarImages
from udmlss.report.thumbnails import Thumbnails

RED = (200, 10, 10)


def picture(size=(8, 8)):
    return Image.new("RGB", size, RED)


def channels_first():
    return torch.tensor(RED).view(3, 1, 1).expand(3, 8, 8)


ITEMS = {
    "an image of Pillow": picture(),
    "an image with its label": (picture(), 3),
    "a dictionary": {"label": 3, "image": picture()},
    "a tensor in 0..1": channels_first() / 255,
    "a tensor in half precision": (channels_first() / 255).half(),
    "a tensor in 0..255": channels_first().to(torch.uint8),
    "an array": np.asarray(picture()),
    "a transparent image": picture().convert("RGBA"),
}


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_shown_in_its_colors(name):
    assert Thumbnails([ITEMS[name]]).picture(0).getpixel((4, 4)) == pytest.approx(RED, abs=1)


def test_gray_and_normalized_tensors_are_scaled_to_the_range_of_a_picture():
    gray = Thumbnails(
        [
            torch.linspace(0, 1, 16).view(1, 4, 4),
            torch.linspace(-2, 3, 48).view(3, 4, 4),
            torch.ones(1, 4, 4),
            torch.tensor([[[torch.nan, 1.0]]]),
        ]
    )
    assert gray.picture(0).getextrema() == ((0, 255),) * 3
    assert gray.picture(1).getextrema()[0][0] == 0
    assert gray.picture(1).getextrema()[2][1] == 255
    assert gray.picture(2).getextrema() == ((255, 255),) * 3
    assert [gray.picture(3).getpixel((column, 0))[0] for column in (0, 1)] == [0, 255]
    assert not gray.unreadable


def test_files_are_shrunk_upright_and_named_and_become_jpeg_files(tmp_path):
    path = tmp_path / "a b.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated
    picture((400, 200)).save(path, exif=exif)
    thumbnails = Thumbnails([path], size=50)
    assert thumbnails.picture(0).size == (25, 50)
    assert thumbnails.name(0) == f"{tmp_path.name}/a b.jpg"
    kind, _, body = thumbnails.uri(0).partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(body))).size == (25, 50)


def test_files_in_the_home_folder_and_with_damaged_exif_data_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    picture().save(tmp_path / "red.jpg", dpi=(72, 72), exif=b"Exif\0\0no header of TIFF")
    thumbnails = Thumbnails(["~/red.jpg"])
    assert thumbnails.picture(0).getpixel((0, 0)) == pytest.approx(RED, abs=2)
    assert not thumbnails.unreadable


def test_the_files_of_a_dataset_are_shown_instead_of_its_transformed_items(tmp_path):
    picture().save(tmp_path / "red.png")
    images = ImageFiles([tmp_path / "red.png"], [0], ["a"], transform=lambda _: torch.zeros(3, 4, 4))
    assert Thumbnails(images).picture(0).getpixel((0, 0)) == RED
    assert Thumbnails(images).name(0) == f"{tmp_path.name}/red.png"
    assert images[0][0].shape == (3, 4, 4)  # the dataset itself is unchanged


def test_images_in_tar_files_are_shown_with_the_names_of_their_members(tmp_path):
    picture().save(tmp_path / "red.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "red.png", "a/red.png")
    thumbnails = Thumbnails(TarImages([tmp_path / "shard.tar"], transform=lambda _: torch.zeros(3, 4, 4)))
    assert thumbnails.picture(0).getpixel((0, 0)) == RED
    assert thumbnails.name(0) == "a/red.png"


def test_files_are_shown_with_the_background_and_the_values_of_the_dataset(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "scan.png")
    paths = [tmp_path / "clear.png", tmp_path / "scan.png"]
    thumbnails = Thumbnails(ImageFiles(paths, background="blue", value_range=(0, 4095)))
    assert thumbnails.picture(0).getpixel((0, 0)) == (0, 0, 255)
    assert thumbnails.picture(1).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("item", ["no-such-file.jpg", torch.zeros(2, 3, 4, 5), None, {}, []])
def test_an_image_that_cannot_be_read_is_a_placeholder(item):
    thumbnails = Thumbnails([picture(), item])
    assert thumbnails.picture(1).size == (112, 112)
    assert thumbnails.unreadable == {1}


def test_interrupts_are_not_taken_for_unreadable_images():
    class Interrupted(list):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Thumbnails(Interrupted([1])).picture(0)


def test_a_folder_or_an_empty_list_is_an_error_that_names_the_remedy():
    with pytest.raises(TypeError, match=r"`images` must be a sequence of paths .* got str"):
        Thumbnails("images/")
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        Thumbnails([])
