import layouts
import pytest
from scipy.io import savemat

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


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:200], lambda raw: b"<html>" * 99])
def test_rejects_damaged_annotations(tmp_path, damage):
    path = layouts.cars196(tmp_path) / "cars_annos.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} must be the published MATLAB file .*, got .*\. Download it again"):
        cars196(tmp_path, "train")


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
