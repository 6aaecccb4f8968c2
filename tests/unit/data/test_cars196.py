import layouts
import pytest
from scipy.io import savemat

from udmlss.data import cars196


def test_the_first_half_of_the_classes_trains_and_the_rest_tests(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(1, 1, 2, 3, 4, 4))
    train, test = cars196(root, "train"), cars196(root, "test")
    assert (train.classes, test.classes) == (["Audi", "BMW"], ["Fiat", "Volvo"])
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [0, 1, 1]


def test_images_come_in_the_order_of_the_annotations_with_their_own_label(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(4, 1, 3, 2, 3))
    test = cars196(root, "test")
    assert [path.name for path in test.paths] == ["000001.jpg", "000003.jpg", "000005.jpg"]
    assert [(image.getpixel((0, 0))[0], label) for image, label in map(test.__getitem__, range(3))] == [
        (0, 1),
        (2, 0),
        (4, 0),
    ]


def test_a_transform_is_applied_to_the_image_alone(tmp_path):
    assert cars196(layouts.cars196(tmp_path), "train", transform=lambda image: image.size)[0] == ((6, 4), 0)


def test_a_single_image_and_an_empty_half_are_read(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(2,))
    assert cars196(root, "train").labels.tolist() == [0]
    assert len(cars196(root, "test")) == 0


def test_a_folder_without_the_annotations_is_refused_with_what_lies_in_it(tmp_path):
    (tmp_path / "cars_train").mkdir()
    rule = r"must be a folder in cars196's layout, with cars_annos\.mat and car_ims/, got \['cars_train'\]\. Pass"
    with pytest.raises(ValueError, match=rule):
        cars196(tmp_path, "train")


def test_an_archive_that_is_not_unpacked_is_met_with_the_line_that_unpacks_it(tmp_path):
    (tmp_path / "car_ims.tgz").touch()
    (tmp_path / "cars_annos.mat").touch()
    with pytest.raises(ValueError, match=rf"`python -m udmlss\.data cars196 {tmp_path} --unpack`\.$"):
        cars196(tmp_path, "train")


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:200], lambda raw: b"<html>" * 99])
def test_annotations_that_are_cut_short_or_another_file_are_refused(tmp_path, damage):
    path = layouts.cars196(tmp_path) / "cars_annos.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} must be the authors' MATLAB file, .*, got .*\. Download it again"):
        cars196(tmp_path, "train")


def test_another_matlab_file_is_refused_with_what_it_lacks(tmp_path):
    savemat(layouts.cars196(tmp_path) / "cars_annos.mat", {"annotations": 3})
    with pytest.raises(ValueError, match="must be the authors' MATLAB file"):
        cars196(tmp_path, "train")


def test_a_class_without_a_name_is_refused(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(1, 5))
    with pytest.raises(ValueError, match=r"cars_annos\.mat must have one of its names, got class 5 and 4 names"):
        cars196(root, "train")


def test_an_image_that_is_annotated_twice_is_refused(tmp_path):
    root = layouts.cars196(tmp_path, class_of=(1, 2, 3), files=["car_ims/1.jpg", "car_ims/2.jpg", "car_ims/1.jpg"])
    with pytest.raises(ValueError, match=r"once in .*\.mat, got 1 of 3 there again, the first is car_ims/1\.jpg"):
        cars196(root, "train")


def test_a_picture_that_is_not_there_is_named_at_once(tmp_path):
    gone = layouts.cars196(tmp_path) / "car_ims" / "000002.jpg"
    gone.unlink()
    with pytest.raises(ValueError, match=rf"cars_annos\.mat must be there, got 1 of 3 missing, the first is {gone}"):
        cars196(tmp_path, "train")
    assert len(cars196(tmp_path, "test")) == 3
