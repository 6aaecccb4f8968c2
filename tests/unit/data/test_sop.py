import layouts
import pytest

from udmlss.data import sop


def test_each_list_is_a_split_in_its_own_order_with_labels_from_0(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1, 2), test=(4, 3, 4))
    train, test = sop(root, "train"), sop(root, "test")
    assert (train.classes, test.classes) == (["1", "2"], ["4", "3"])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert [test[index][0].getpixel((0, 0))[0] for index in range(3)] == [3, 4, 5]


def test_the_folder_above_will_do(tmp_path):
    layouts.sop(tmp_path / "Stanford_Online_Products")
    assert len(sop(tmp_path, "test")) == 4


def test_an_archive_that_is_not_unpacked_is_met_with_the_line_that_unpacks_it(tmp_path):
    root = tmp_path / "my data"
    root.mkdir()
    (root / "Stanford_Online_Products.zip").touch()
    with pytest.raises(ValueError, match=r"python -m udmlss\.data sop '.*/my data' --unpack"):
        sop(root, "train")


def test_a_half_unpacked_folder_is_refused_with_what_lies_in_it(tmp_path):
    root = layouts.sop(tmp_path / "Stanford_Online_Products")
    (root / "Ebay_test.txt").unlink()
    with pytest.raises(ValueError, match=rf"{root} must be .*, with .*test\.txt, got \['Ebay_train\.txt', 'bicycle_f"):
        sop(tmp_path, "train")


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (["1 1 1 a.JPG"], r"Line 1 of .*Ebay_train\.txt must be image_id class_id super_class_id path, got '1 1 1 a"),
        ([], r"Line 1 of .*Ebay_train\.txt must be image_id .*, got 0 lines"),
        (["image_id class_id super_class_id path"], r"Each line of .* must be image_id .*, got an empty file"),
        (
            ["image_id class_id super_class_id path", "", "1 1 a.JPG"],
            r"must be image_id .*, got '1 1 a.JPG' in line 3",
        ),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path, rows, rule):
    layouts.lines(layouts.sop(tmp_path) / "Ebay_train.txt", rows)
    with pytest.raises(ValueError, match=rule):
        sop(tmp_path, "train")


def test_an_image_that_is_listed_twice_is_refused(tmp_path):
    path = layouts.sop(tmp_path) / "Ebay_train.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[1])
    with pytest.raises(ValueError, match=rf"Each name must stand once in {path}, got 1 of 4 there again"):
        sop(tmp_path, "train")


def test_a_picture_that_is_not_there_is_named_at_once(tmp_path):
    gone = sop(layouts.sop(tmp_path), "test").paths[1]
    gone.unlink()
    with pytest.raises(ValueError, match=rf"Ebay_test\.txt must be there, got 1 of 4 missing, the first is {gone}"):
        sop(tmp_path, "test")
