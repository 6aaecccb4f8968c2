from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import save_image
from PIL import Image

from udmlss.data import ImageFiles, cub200, image_folder, split_classes


def test_each_folder_is_a_class_and_names_are_sorted(tmp_path, monkeypatch):
    for number, file in enumerate(("cat/b.png", "ant/z.PNG", "cat/a.jpeg", "bee/deep/down/x.webp")):
        save_image(tmp_path / "photos" / file, number)
    monkeypatch.setenv("HOME", str(tmp_path))
    images = image_folder("~/photos")
    assert images.classes == ["ant", "bee", "cat"]
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert [path.name for path in images.paths] == ["z.PNG", "x.webp", "a.jpeg", "b.png"]
    assert images[3][1] == 2
    assert repr(images) == "ImageFiles(4 images of 3 classes)"


def test_images_without_folders_have_no_class(tmp_path):
    for number in range(3):
        save_image(tmp_path / f"{number}.png", number)
    images = image_folder(tmp_path, transform=lambda image: image.getpixel((0, 0))[0])
    assert [images[index] for index in range(3)] == [(0, -1), (1, -1), (2, -1)]
    assert images.classes == []
    assert repr(images) == "ImageFiles(3 images without classes)"


def test_hidden_files_and_other_files_are_ignored(tmp_path):
    save_image(tmp_path / "cat" / "1.png")
    for name in (".DS_Store", "README.txt", ".cache/1.png", "cat/._1.png", "cat/.thumbnails/1.png", "cat/notes.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in image_folder(tmp_path).paths] == ["1.png"]


def test_a_folder_without_images_next_to_images_is_ignored(tmp_path):
    save_image(tmp_path / "1.png")
    (tmp_path / "notes").mkdir()
    assert image_folder(tmp_path).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("folders", "found"), [(None, "no such folder"), ((), "none"), (("a", "b"), "none in 2 folders")]
)
def test_rejects_a_folder_without_images(tmp_path, folders, found):
    root = tmp_path / "here"
    for folder in (".", *folders) if folders is not None else ():
        (root / folder).mkdir()
    with pytest.raises(ValueError, match=rf"here must contain images with the suffix \.bmp, .*, got {found}\. Pass"):
        image_folder(root)


def test_rejects_images_next_to_folders_of_images(tmp_path):
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "cat" / "2.png")
    with pytest.raises(ValueError, match=r"either images or one folder per class, got 1\.png and cat/\. Move"):
        image_folder(tmp_path)


def test_rejects_a_class_without_images(tmp_path):
    save_image(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.heic").touch()
    with pytest.raises(ValueError, match=r"with the suffix .*, got none in 1 of 2 folders, the first is dog/\. Remove"):
        image_folder(tmp_path)


@pytest.mark.parametrize("labels", [[1, -1, 0], np.array([1, -1, 0], np.int16), torch.tensor([1, -1, 0])])
def test_image_files_accept_strings_and_any_kind_of_labels(tmp_path, monkeypatch, labels):
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in range(3):
        save_image(tmp_path / f"{number}.png", number)
    images = ImageFiles(["~/0.png", "~/1.png", tmp_path / "2.png"], labels, ("a", "b"), lambda image: image.size)
    assert images.paths == [tmp_path / f"{number}.png" for number in range(3)]
    assert [images[index] for index in (0, np.int64(1), 2)] == [((6, 4), 1), ((6, 4), -1), ((6, 4), 0)]


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([0], r"`labels` must have shape \(2,\), one label per item"),
        ([0, 2], r"`labels` must lie in -1\.\.1, the indices of `classes`, got 2\. Pass the name of every class"),
        ([0, -2], r"`labels` must lie in -1\.\.1, the indices of `classes`, got -2\."),
    ],
)
def test_image_files_reject_labels_that_do_not_match(labels, error):
    with pytest.raises(ValueError, match=error):
        ImageFiles([Path("1.png"), Path("2.png")], labels, ["a", "b"])


def truncated_image(path):
    Image.effect_noise((64, 64), 50).save(path)
    return path.read_bytes()[:800]


@pytest.mark.parametrize("content", [b"no image", b"P5 6x 4 255 ", b"BM" + b"\xff" * 60, truncated_image])
def test_loading_reports_the_path_of_an_unreadable_file(tmp_path, content):
    save_image(tmp_path / "1.png")
    path = tmp_path / "2.png"
    path.write_bytes(content(path) if callable(content) else content)
    images = image_folder(tmp_path)
    with pytest.raises(OSError, match=rf"{path} must be a complete image file, got .*\. Download or unpack it again"):
        images[1]
    assert images[0][1] == -1


@given(st.lists(st.integers(0, 9), min_size=2).filter(lambda labels: len(set(labels)) > 1), st.floats(0.5, 0.99))
def test_parts_of_a_split_contain_every_image_once_and_no_common_class(labels, fraction):
    first, second = split_classes(labels, fraction)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    labels = torch.tensor(labels)
    assert labels[first].max() < labels[second].min()
    assert first.tolist() == sorted(first.tolist())
    assert second.tolist() == sorted(second.tolist())


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 50), (0.29, 29), (0.01, 1), (0.999, 99), (np.float64(0.29), 29)])
def test_fraction_is_that_of_the_classes(fraction, count):
    labels = np.arange(100).repeat(np.arange(1, 101))
    first, _ = split_classes(labels, fraction)
    assert len(np.unique(labels[first.numpy()])) == count


def test_the_default_fraction_gives_the_split_of_cub200(cub100):
    train, test = (cub200(cub100, split).labels for split in ("train", "test"))
    first, second = split_classes(torch.cat([train, test + len(train.unique())]))
    assert (len(first), len(second)) == (len(train), len(test))


@pytest.mark.parametrize("fraction", [0, 0.2, 1])
def test_rejects_a_fraction_that_leaves_a_part_without_classes(fraction):
    error = rf"`fraction={fraction}` must leave a class in each part, got 4 classes\. Choose a fraction closer"
    with pytest.raises(ValueError, match=error):
        split_classes(torch.arange(4), fraction)


@pytest.mark.parametrize("fraction", [-0.5, 1.5])
def test_rejects_a_fraction_outside_0_to_1(fraction):
    with pytest.raises(ValueError, match=rf"`fraction` must lie in 0\.\.1, got {fraction}\."):
        split_classes([0, 1, 2, 3], fraction)


def test_rejects_to_split_a_single_class():
    with pytest.raises(ValueError, match=r"must leave a class in each part, got 1 classes\. .* or add images of other"):
        split_classes([0, 0, 0])


def test_rejects_to_split_images_without_a_class():
    with pytest.raises(ValueError, match=r"`labels` must be 0 or above, got 2 of 5 below 0\. Remove"):
        split_classes([0, -1, 1, -1, 2])
