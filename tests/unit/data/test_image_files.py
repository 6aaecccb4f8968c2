import errno
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from layouts import save_image
from PIL import Image

from udmlss.data import ImageFiles, check_images, find_damaged, image_folder


@pytest.mark.parametrize("labels", [[1, -1, 0], np.array([1, -1, 0], np.int16), torch.tensor([1, -1, 0])])
def test_image_files_accept_strings_and_any_kind_of_labels(tmp_path, monkeypatch, labels):
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in range(3):
        save_image(tmp_path / f"{number}.png", number)
    images = ImageFiles(["~/0.png", "~/1.png", tmp_path / "2.png"], labels, ("a", "b"), lambda image: image.size)
    assert images.paths == [tmp_path / f"{number}.png" for number in range(3)]
    assert [images[index] for index in (0, np.int64(1), torch.tensor(2))] == [((6, 4), 1), ((6, 4), -1), ((6, 4), 0)]


def test_labels_and_classes_are_optional(tmp_path):
    save_image(tmp_path / "1.png", 7)
    images = ImageFiles([tmp_path / "1.png"], transform=lambda image: image.getpixel((0, 0))[0])
    assert (images[0], images.classes, repr(images)) == ((7, -1), [], "ImageFiles(1 images without classes)")
    assert images.labels.tolist() == [-1]
    with pytest.raises(ValueError, match=r"`labels` must lie in -1\.\.-1, the indices of `classes`, got 0"):
        ImageFiles(["1.png"], [0])


@pytest.mark.parametrize("path", ["photos", Path("photos")])
def test_one_path_is_not_a_sequence_of_paths(monkeypatch, path):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(
        TypeError, match=r"`paths` must be a sequence of paths, got 'photos'\. Pass a list, or `find_im"
    ):
        ImageFiles(path)


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


@pytest.fixture
def damaged(tmp_path):
    """Six images of three classes, of which those with the indices 1, 4 and 5 cannot be read."""
    for number in range(6):
        save_image(tmp_path / "abc"[number // 2] / f"{number}.png", number)
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    content = (tmp_path / "c" / "4.png").read_bytes()
    (tmp_path / "c" / "4.png").write_bytes(content[:-20])
    paths = [tmp_path / "abc"[number // 2] / f"{number}.png" for number in range(6)]
    paths[5].unlink()
    return paths, [0, 0, 1, 1, 2, 2], ["a", "b", "c"]


def test_find_damaged_returns_paths_and_reasons_without_the_transform(damaged):
    found = find_damaged(ImageFiles(*damaged, transform=lambda image: 1 / 0), progress=False)
    assert [path for path, _ in found] == [damaged[0][index] for index in (1, 4, 5)]
    assert "cannot identify image file" in found[0].reason
    assert "No such file" in found[2].reason
    assert find_damaged(ImageFiles(damaged[0][:1], [0], ["a"])) == []


def test_skip_leaves_out_damaged_images_and_lists_them(damaged):
    with pytest.warns(
        UserWarning, match=r"^3 of 6 images cannot be read and are skipped: .*1\.png \(cannot .*\); .*4\."
    ):
        images = ImageFiles(*damaged, lambda image: image.getpixel((0, 0))[0], on_error="skip")
    assert images.paths == [damaged[0][index] for index in (0, 2, 3)]
    assert [images[index] for index in range(3)] == [(0, 0), (2, 1), (3, 1)]
    assert [path for path, _ in images.skipped] == [damaged[0][index] for index in (1, 4, 5)]
    assert repr(images) == "ImageFiles(3 images of 3 classes)"


def test_skip_leaves_intact_images_unchanged_and_prints_nothing_without_progress(tmp_path, capsys):
    save_image(tmp_path / "1.png")
    images = image_folder(tmp_path, on_error="skip", progress=False)
    assert (len(images), images.skipped) == (1, ())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_an_error_of_the_system_is_not_taken_for_a_damaged_image(tmp_path, monkeypatch, error):
    save_image(tmp_path / "1.png")

    def fail(*_):
        raise error

    monkeypatch.setattr("udmlss.data.image_reader.open_image", fail)
    for use in (lambda: ImageFiles([tmp_path / "1.png"], on_error="skip"), lambda: check_images([tmp_path / "1.png"])):
        with pytest.raises(type(error)) as caught:
            use()
        assert caught.value is error


def test_skip_shortens_a_long_list(tmp_path):
    save_image(tmp_path / "0.png")
    with pytest.warns(UserWarning, match=r"^7 of 8 .*; and 2 more$"):
        ImageFiles([tmp_path / f"{number}.png" for number in range(8)], [-1] * 8, [], on_error="skip")


def test_skip_requires_a_readable_image(tmp_path):
    with pytest.raises(
        ValueError, match=r"^An image must be readable, got 1 that are not: .*1\.png \(.*\)\. Check the"
    ):
        ImageFiles([tmp_path / "1.png"], [-1], [], on_error="skip")


def test_rejects_another_reaction_to_errors(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"`on_error` must be one of 'raise', 'skip', got 'ignore'"):
        ImageFiles(["1.png"], [-1], [], on_error="ignore")
