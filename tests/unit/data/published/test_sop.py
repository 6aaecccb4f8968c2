import layouts
import pytest

from udmlss.data import sop

HEADER = "image_id class_id super_class_id path"


def test_each_list_is_a_split_with_its_own_order_and_labels(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1, 2), test=(4, 3, 4))
    train, test = sop(root, "train"), sop(root, "test")
    assert (train.classes, test.classes) == (["1", "2"], ["4", "3"])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert [test[index][0].getpixel((0, 0))[0] for index in range(3)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["1 1 1 a.JPG"], rf"Line 1 of .*Ebay_train\.txt must be {HEADER}, got '1 1 1 a"),
        ([], rf"Line 1 of .*Ebay_train\.txt must be {HEADER}, got 0 lines"),
        ([HEADER], rf"Each line of .* must be {HEADER}, got an empty list"),
        ([HEADER, "", "1 1 a.JPG"], rf"must be {HEADER}, got '1 1 a.JPG' in line 3"),
        ([HEADER, "1 1 1 a.JPG", "2 1 1 a.JPG"], r"Names in .* must be unique, got 1 repeated in 2 lines"),
    ],
)
def test_rejects_damaged_lists(tmp_path, lines, error):
    layouts.write_lines(layouts.sop(tmp_path) / "Ebay_train.txt", lines)
    with pytest.raises(ValueError, match=error):
        sop(tmp_path, "train")
