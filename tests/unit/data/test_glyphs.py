import subprocess
import sys
import unicodedata
from pathlib import Path

import jaxtyping
import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import ImageFont
from torch.utils.data import DataLoader

from udmlss.data import glyphs

MODULE = sys.modules["udmlss.data.glyphs"]  # the package holds the function under this name
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    glyphs("test", cache=folder)
    return folder


@pytest.fixture(scope="module", params=SPLITS)
def data(request, folder):
    return glyphs(request.param, cache=folder)


def equal(ours, theirs):
    return (
        torch.equal(ours.images, theirs.images)
        and torch.equal(ours.labels, theirs.labels)
        and torch.equal(ours.face_of, theirs.face_of)
        and ours.characters == theirs.characters
    )


@pytest.mark.parametrize(("split", "images", "classes"), [("train", 12_034, 939), ("test", 9_628, 783)])
def test_each_split_has_the_promised_images_and_characters(folder, split, images, classes):
    data = glyphs(split, cache=folder)
    assert len(data) == len(data.labels) == len(data.face_of) == images
    assert len(data.characters) == len(set(data.characters)) == classes
    assert f"{images} images of {classes} characters in 16 faces" in repr(data)


def test_no_character_is_in_both_splits(folder):
    train, test = (glyphs(split, cache=folder) for split in SPLITS)
    assert not set(train.characters) & set(test.characters)
    assert all(unicodedata.name(character).startswith("LATIN ") for character in train.characters)
    assert not any(unicodedata.name(character).startswith("LATIN ") for character in test.characters)


def test_every_character_has_eight_images_or_more_each_in_another_face(data):
    assert torch.bincount(data.labels).min() >= 8
    assert torch.unique(data.labels * 16 + data.face_of).numel() == len(data)
    assert len(set(data.faces)) == 16
    assert data.face_of.unique().tolist() == list(range(16))


def test_images_are_ordered_by_character_then_by_face(data):
    assert (torch.diff(data.labels * 16 + data.face_of) > 0).all()
    assert sorted(data.characters) == list(data.characters)


def test_every_image_shows_a_glyph_on_black_with_a_margin_nearly_always_in_the_middle(data):
    assert data.images.shape == (len(data), 1, 32, 32)
    assert data.images.min() == 0
    assert (data.images.flatten(1).amax(1) > 0.5).all()
    inner = data.images[:, 0, 1:-1, 1:-1]
    assert inner.count_nonzero() == data.images.count_nonzero()
    for ink in (inner.amax(1) > 0, inner.amax(2) > 0):
        before, after = ink.int().argmax(1), ink.flip(1).int().argmax(1)
        assert ((before - after).abs() > 2).float().mean() < 0.05


def test_no_glyph_is_cut_off(data):
    fonts = Path(mpl.get_data_path(), "fonts", "ttf")
    for index in range(0, len(data), 97):
        file = fonts / f"{data.faces[data.face_of[index]]}.ttf"
        image = (data.images[index, 0].numpy() * 255).round().astype(np.uint8)
        character = data.characters[data.labels[index]]
        wholes = (
            np.array(ImageFont.truetype(file, size, layout_engine=0).getmask(character)) for size in range(24, 7, -1)
        )
        assert any(whole.sum() == image.sum() for whole in wholes), character


def test_an_item_is_an_image_and_its_label(data):
    image, label = data[-1]
    assert torch.equal(image, data.images[-1])
    assert label == data.labels[-1]
    assert isinstance(label, int)
    with pytest.raises(IndexError):
        data[len(data)]


def test_a_data_loader_takes_it_as_it_is(data):
    images, labels = next(iter(DataLoader(data, batch_size=5)))
    assert torch.equal(images, data.images[:5])
    assert torch.equal(labels, data.labels[:5])


def test_the_transform_is_applied_to_the_item_and_never_to_the_data_set(folder):
    data = glyphs("test", transform=lambda image: image.neg_(), cache=folder)
    before = data.images[3].clone()
    assert torch.equal(data[3][0], -before)
    assert torch.equal(data.images[3], before)


def test_drawing_again_gives_the_same_bytes_as_the_cache(folder, tmp_path):
    assert equal(glyphs("test", cache=None), glyphs("test", cache=folder))
    glyphs("train", cache=tmp_path)
    [ours], [theirs] = folder.iterdir(), tmp_path.iterdir()
    assert ours.name == theirs.name
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_cached_file_is_read_and_not_drawn_again(folder, monkeypatch):
    monkeypatch.setattr(MODULE, "_draw_all", lambda: pytest.fail("drawn again"))
    assert len(glyphs("test", cache=folder)) == 9_628


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1000], lambda b: b[:50_000] + b"\xff" + b[50_001:]])
def test_a_damaged_cache_is_repaired(folder, tmp_path, damage):
    [good] = folder.iterdir()
    broken = tmp_path / good.name
    broken.write_bytes(damage(good.read_bytes()))
    assert equal(glyphs("test", cache=tmp_path), glyphs("test", cache=folder))
    assert broken.read_bytes() == good.read_bytes()
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize("package", [mpl, sys.modules["PIL"]])
def test_another_version_of_what_draws_is_another_file(folder, tmp_path, monkeypatch, package):
    monkeypatch.setattr(MODULE, "_draw_all", lambda: np.zeros(0, MODULE._RECORD))
    monkeypatch.setattr(package, "__version__", "0.1")
    glyphs("test", cache=tmp_path)
    assert {file.name for file in tmp_path.iterdir()}.isdisjoint(file.name for file in folder.iterdir())


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert len(glyphs("test", cache=file / "cache")) == 9_628
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError

    monkeypatch.setattr(Path, "replace", fail)
    assert len(glyphs("test", cache=tmp_path)) == 9_628
    assert not list(tmp_path.iterdir())


def test_the_cache_follows_the_user_s_cache_folder(tmp_path, monkeypatch):
    user_cache = MODULE._user_cache
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "udmlss"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert user_cache() == tmp_path / "home" / ".cache" / "udmlss"


def test_a_user_without_a_home_goes_without_a_cache(monkeypatch):
    def fail():
        raise RuntimeError

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert MODULE._user_cache() is None


def test_an_unknown_split_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse it, too
    with pytest.raises(ValueError, match=r"`split` must be one of 'train', 'test', got 'val'\. Pass one of these\."):
        glyphs("val")


@pytest.mark.parametrize("package", ["matplotlib", "PIL"])
def test_a_missing_package_tells_the_line_to_type(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'found no {package}\. Type: pip install "udmlss\[demo\]"'):
        glyphs("test", cache=folder)


def test_importing_the_data_imports_no_matplotlib_and_no_pillow():
    code = "import sys, udmlss.data; print([name for name in ('matplotlib', 'PIL') if name in sys.modules])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (our own code)
    assert found.stdout == "[]\n"
