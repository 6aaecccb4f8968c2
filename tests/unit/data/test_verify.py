from functools import partial

import layouts
import pytest

from udmlss.data import image_folder, sop
from udmlss.data.catalog import Split
from udmlss.data.verify import verify


def openers(root):
    return {split: partial(sop, root, split) for split in ("train", "test")}


def test_a_copy_that_is_as_published_has_no_problems(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1, 2, 2), test=(3, 3))
    report = verify(openers(root), {"train": Split(4, 2), "test": Split(2, 1)}, progress=False)
    assert report.facts == ("train: 4 images of 2 classes, as published", "test: 2 images of 1 classes, as published")
    assert report.problems == ()


def test_other_counts_are_said_and_the_pictures_are_read_all_the_same(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1, 2, 2), test=(3, 3))
    path = sop(root, "test").paths[1]
    path.write_text("no picture")
    report = verify(openers(root), {"train": Split(5, 2), "test": Split(2, 1)}, progress=False)
    assert report.facts[0] == "train: 4 images of 2 classes, published 5 of 2"
    counts, unreadable = report.problems
    assert unreadable.startswith(f"{path} must be a whole image file; found")
    assert counts == "Not the published data set: counts differ."


def test_a_split_that_is_refused_leaves_the_other_to_be_read(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1), test=(3, 3))
    sop(root, "train").paths[0].unlink()
    sop(root, "test").paths[0].write_text("no picture")
    report = verify(openers(root), {}, progress=False)
    assert report.facts == ("test: 2 images of 1 classes",)
    assert [problem.split(";")[0].split(" must")[0] for problem in report.problems] == [
        "Every image in Ebay_train.txt",
        str(sop(root, "test").paths[0]),
    ]


def test_what_every_split_refuses_is_said_once(tmp_path):
    assert len(verify(openers(tmp_path), {}, progress=False).problems) == 1


def test_a_truncated_picture_is_found_and_a_quick_look_does_not_read_it(tmp_path):
    layouts.picture(tmp_path / "1.jpg")
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[:-20])
    folder = {"folder": partial(image_folder, tmp_path)}
    assert "truncated" in verify(folder, {}, progress=False).problems[0]
    assert verify(folder, {}, quick=True, progress=False).problems == ()


@pytest.mark.parametrize("content", [b"P5 6x 4 255 ", b"BM" + b"\xff" * 60])
def test_a_file_on_which_pillow_fails_in_its_own_ways_is_unreadable_too(tmp_path, content):
    (tmp_path / "1.png").write_bytes(content)
    (problem,) = verify({"folder": partial(image_folder, tmp_path)}, {}, progress=False).problems
    assert "1.png must be a whole image file" in problem


def test_classes_with_one_image_and_equal_files_are_facts_and_no_problems(tmp_path):
    for name, number in (("a/1", 1), ("a/2", 2), ("b/1", 2), ("c/1", 3)):
        layouts.picture(tmp_path / f"{name}.png", number)
    report = verify({"folder": partial(image_folder, tmp_path)}, {}, progress=False)
    equal = f"equal files: {tmp_path / 'a' / '2.png'} and {tmp_path / 'b' / '1.png'}"
    assert report.facts == ("folder: 4 images of 3 classes", "folder: 2 of the classes with one image", equal)
    assert report.problems == ()


def test_pictures_without_classes_are_counted_as_such(tmp_path):
    layouts.picture(tmp_path / "1.png")
    report = verify({"folder": partial(image_folder, tmp_path)}, {}, progress=False)
    assert report.facts == ("folder: 1 images without classes",)
