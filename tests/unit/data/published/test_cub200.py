import layouts
import pytest

from udmlss.data import cub200

CLASS_OF = (3, 1, 2, 5, 4, 1)  # in the order of images.txt


def test_the_first_half_of_the_classes_is_for_training_and_the_rest_for_testing(tmp_path):
    root = layouts.cub200(tmp_path, CLASS_OF)
    train, test = cub200(root, "train"), cub200(root, "test")
    assert train.classes == ["001.Bird_1", "002.Bird_2"]
    assert test.classes == ["003.Bird_3", "004.Bird_4", "005.Bird_5"]
    assert train.labels.tolist() == [0, 1, 0]
    assert test.labels.tolist() == [0, 2, 1]
    assert [path.stem for path in test.paths] == ["0", "3", "4"]


def test_classes_are_ordered_by_number_and_not_by_name(tmp_path):
    root = layouts.cub200(tmp_path, (2, 10, 1, 9), lists={"classes.txt": ["10 a", "9 b", "2 c", "1 d"]})
    assert (cub200(root, "train").classes, cub200(root, "test").classes) == (["d", "c"], ["b", "a"])


def test_opens_photographs_in_this_layout(cub100):
    train, test = cub200(cub100, "train"), cub200(cub100, "test")
    assert (len(train), len(test)) == (2949, 2953)
    assert len(train.classes) == len(test.classes) == 50
    assert not set(train.paths) & set(test.paths)
    assert train[0][0].size == (227, 227)


@pytest.mark.parametrize(
    ("lists", "error"),
    [
        (
            {"image_class_labels.txt": ["1 1", "2 1"]},
            r"lists in .* must contain the same images and classes, got 6 images, 2 labels and 5 classes that do not",
        ),
        ({"classes.txt": ["1 a", "b"]}, r"Each line of .*classes\.txt must be a number and a name, got 'b' in line 2"),
        ({"classes.txt": []}, r"Each line of .*classes\.txt must be a number and a name, got an empty list"),
        ({"images.txt": ["1 a.jpg", "", "x"]}, r"must be a number and a name, got 'x' in line 3"),
        (
            {"images.txt": ["1 a.jpg", "2 b.jpg", "3 a.jpg"]},
            r"Names in .*images\.txt must be unique, got 1 repeated in 3 lines, the first is a\.jpg\. Unpack",
        ),
        (
            {"images.txt": ["1 a.jpg", "2 b.jpg", "1 c.jpg"]},
            r"Names in .*images\.txt must be unique, got 1 repeated in 3 lines, the first is 1\. Unpack",
        ),
    ],
)
def test_rejects_damaged_lists(tmp_path, lists, error):
    with pytest.raises(ValueError, match=error):
        cub200(layouts.cub200(tmp_path, CLASS_OF, lists), "train")
