import random
import sys

import layouts
import pytest
from scipy.io import loadmat, savemat

from udmlss.data import cars196


def test_the_first_half_of_the_classes_is_for_training_and_the_rest_for_testing(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(4, 1, 3, 2, 1, 3))
    train, test = cars196(root, "train"), cars196(root, "test")
    assert (train.classes, test.classes) == (["Audi", "BMW"], ["Fiat", "Volvo"])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0], [1, 0, 0])
    assert [path.name for path in test.paths] == ["000001.jpg", "000003.jpg", "000006.jpg"]


def test_a_single_image_and_an_empty_split_are_read(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(2,))
    assert cars196(root, "train").labels.tolist() == [0]
    assert len(cars196(root, "test")) == 0


def changed(content):
    generator = random.Random(1)  # noqa: S311 (no secrets)
    damaged = bytearray(content)
    for _ in range(4):
        damaged[generator.randrange(200, len(damaged))] ^= generator.randint(1, 255)
    return bytes(damaged)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:200], lambda raw: b"<html>" * 99, changed])
def test_rejects_damaged_annotations(tmp_path, damage):
    path = layouts.cars196(tmp_path) / "cars_annos.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} must be the published MATLAB file .*, got .*\. Download it again"):
        cars196(tmp_path, "train")


def test_annotations_that_end_the_process_of_their_reader_are_an_error(tmp_path, monkeypatch):
    root = layouts.cars196(tmp_path)
    module = sys.modules["udmlss.data.published.cars196"]
    module._read_mat.cache_clear()
    monkeypatch.setattr(module, "_PROGRAM", "import os; os.abort()")
    with pytest.raises(ValueError, match=r"MATLAB file .*, got a file that ends its reader with status -6\. Download"):
        cars196(root, "train")


def test_text_that_is_not_ascii_is_read_from_a_file_without_compression(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(1, 2), names=("Caf\u00e9", "\u8f66"))
    content = loadmat(root / "cars_annos.mat", variable_names=["annotations", "class_names"])
    savemat(root / "cars_annos.mat", {name: content[name] for name in ("annotations", "class_names")})
    assert cars196(root, "train").classes + cars196(root, "test").classes == ["Caf\u00e9", "\u8f66"]


def test_rejects_another_matlab_file(tmp_path):
    savemat(layouts.cars196(tmp_path) / "cars_annos.mat", {"annotations": 3})
    with pytest.raises(ValueError, match="must be the published MATLAB file with `annotations` and `class_names`"):
        cars196(tmp_path, "train")


def test_rejects_a_class_without_a_name(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(1, 5))
    with pytest.raises(ValueError, match=r"Every class in .*cars_annos\.mat must have a name, got class 5 and 4 names"):
        cars196(root, "train")


def test_rejects_repeated_images(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(1, 2, 3), files=["car_ims/1.jpg", "car_ims/2.jpg", "car_ims/1.jpg"])
    with pytest.raises(ValueError, match=r"unique, got 1 repeated in 3 lines, the first is car_ims/1\.jpg"):
        cars196(root, "train")


def test_rejects_annotations_that_lead_out_of_the_folder(tmp_path):
    root = layouts.cars196(tmp_path / "data", class_of=(3, 1), files=["car_ims/1.jpg", "../outside.jpg"])
    with pytest.raises(ValueError, match=r"must be inside .*car_ims, got 1 of 1 outside, the first is .*outside\.jpg"):
        cars196(root, "train")
