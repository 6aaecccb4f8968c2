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

MODULE = sys.modules["udmlss.data.glyphs"]  # in the package, this name is that of the function
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    glyphs("test", cache=folder)
    return folder


@pytest.fixture
def rendered(folder, monkeypatch):
    """Replace rendering, which is slow, by its result; return the list of its calls."""
    [file] = folder.iterdir()
    records = np.frombuffer(file.read_bytes()[32:], MODULE._RECORD)
    calls = []
    monkeypatch.setattr(MODULE, "_render_all", lambda: calls.append(None) or records)
    return calls


@pytest.fixture(scope="module", params=SPLITS)
def data(request, folder):
    return glyphs(request.param, cache=folder)


@pytest.mark.parametrize(("split", "images", "classes"), [("train", 12_034, 939), ("test", 9_628, 783)])
def test_each_split_has_the_documented_images_and_characters(folder, split, images, classes):
    data = glyphs(split, cache=folder)
    assert len(data) == len(data.labels) == len(data.face_of) == images
    assert len(data.characters) == len(set(data.characters)) == classes
    assert f"{images} images of {classes} characters in 16 typefaces" in repr(data)


def test_no_character_is_in_both_splits(folder):
    train, test = (glyphs(split, cache=folder) for split in SPLITS)
    assert not set(train.characters) & set(test.characters)
    assert all(unicodedata.name(character).startswith("LATIN ") for character in train.characters)
    assert not any(unicodedata.name(character).startswith("LATIN ") for character in test.characters)


def test_every_character_is_rendered_in_at_least_eight_typefaces(data):
    assert torch.bincount(data.labels).min() >= 8
    assert torch.unique(data.labels * 16 + data.face_of).numel() == len(data)
    assert len(set(data.faces)) == 16
    assert data.face_of.unique().tolist() == list(range(16))


def test_images_are_ordered_by_character_then_by_typeface(data):
    assert (torch.diff(data.labels * 16 + data.face_of) > 0).all()
    assert sorted(data.characters) == list(data.characters)


def test_every_image_has_a_margin_and_nearly_all_characters_are_centered(data):
    assert data.images.shape == (len(data), 1, 32, 32)
    assert data.images.min() == 0
    assert (data.images.flatten(1).amax(1) > 0.5).all()
    inner = data.images[:, 0, 1:-1, 1:-1]
    assert inner.count_nonzero() == data.images.count_nonzero()
    for ink in (inner.amax(1) > 0, inner.amax(2) > 0):
        before, after = ink.int().argmax(1), ink.flip(1).int().argmax(1)
        assert ((before - after).abs() > 2).float().mean() < 0.05


def test_no_character_is_truncated(data):
    fonts = Path(mpl.get_data_path(), "fonts", "ttf")
    for index in range(0, len(data), 97):
        file = fonts / f"{data.faces[data.face_of[index]]}.ttf"
        image = (data.images[index, 0].numpy() * 255).round().astype(np.uint8)
        character = data.characters[data.labels[index]]
        masks = (ImageFont.truetype(file, size, layout_engine=0).getmask(character) for size in range(24, 7, -1))
        assert any(np.array(mask).sum() == image.sum() for mask in masks), character


def test_an_item_is_an_image_and_its_label(data):
    image, label = data[-1]
    assert torch.equal(image, data.images[-1])
    assert label == data.labels[-1]
    assert isinstance(label, int)
    with pytest.raises(IndexError):
        data[len(data)]


def test_a_data_loader_batches_it(data):
    images, labels = next(iter(DataLoader(data, batch_size=5)))
    assert torch.equal(images, data.images[:5])
    assert torch.equal(labels, data.labels[:5])


def test_an_in_place_transform_changes_the_item_and_not_the_dataset(folder):
    data = glyphs("test", transform=lambda image: image.neg_(), cache=folder)
    before = data.images[3].clone()
    assert torch.equal(data[3][0], -before)
    assert torch.equal(data.images[3], before)


def test_rendering_is_deterministic(folder, tmp_path):
    glyphs("train", cache=tmp_path)
    [first], [second] = folder.iterdir(), tmp_path.iterdir()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_a_cached_file_is_read_and_not_rendered_again(folder, rendered, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(glyphs("test", cache=folder)) == len(glyphs("test", cache=f"~/{folder.name}")) == 9_628
    assert not rendered


def test_without_a_cache_every_call_renders_and_nothing_is_written(data, rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = glyphs("train" if "A" in data.characters else "test", cache=None)
    assert torch.equal(found.images, data.images)
    assert torch.equal(found.labels, data.labels)
    assert torch.equal(found.face_of, data.face_of)
    assert found.characters == data.characters
    assert (len(rendered), [*tmp_path.iterdir()]) == (1, [])


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1000], lambda b: b[:50_000] + b"\xff" + b[50_001:]])
def test_a_damaged_cache_is_replaced(folder, tmp_path, rendered, damage):
    [good] = folder.iterdir()
    broken = tmp_path / good.name
    broken.write_bytes(damage(good.read_bytes()))
    assert len(glyphs("test", cache=tmp_path)) == 9_628
    assert broken.read_bytes() == good.read_bytes()
    assert (len(rendered), list(tmp_path.iterdir())) == (1, [broken])


@pytest.mark.parametrize("package", [mpl, sys.modules["PIL"]])
def test_another_version_of_a_rendering_package_has_another_file(folder, tmp_path, monkeypatch, rendered, package):
    monkeypatch.setattr(package, "__version__", "0.1")
    glyphs("test", cache=tmp_path)
    assert {file.name for file in tmp_path.iterdir()}.isdisjoint(file.name for file in folder.iterdir())


def test_a_folder_that_cannot_be_written_is_not_used(tmp_path, rendered):
    file = tmp_path / "file"
    file.touch()
    assert len(glyphs("test", cache=file / "cache")) == 9_628
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch, rendered):
    def fail(*_):
        raise OSError

    monkeypatch.setattr(Path, "replace", fail)
    assert len(glyphs("test", cache=tmp_path)) == 9_628
    assert not list(tmp_path.iterdir())


def test_the_default_cache_is_in_the_cache_folder_of_the_user(tmp_path, monkeypatch):
    user_cache = MODULE._user_cache
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "udmlss"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert user_cache() == tmp_path / "home" / ".cache" / "udmlss"


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch):
    def fail():
        raise RuntimeError

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert MODULE._user_cache() is None


def test_rejects_an_unknown_split(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the signature rejects it as well
    with pytest.raises(ValueError, match=r"`split` must be one of 'train', 'test', got 'val'\. Pass one of these\."):
        glyphs("val")


def test_reports_how_to_install_matplotlib(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'requires matplotlib, got none\. Install it: pip install "udmlss\[demo\]"'):
        glyphs("test", cache=folder)
