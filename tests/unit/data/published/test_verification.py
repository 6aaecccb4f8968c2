from functools import partial

import layouts

from udmlss.data import image_folder, sop
from udmlss.data.published.layout import SplitSize
from udmlss.data.published.verification import verify

SIZES = {"train": SplitSize(4, 2), "test": SplitSize(2, 1)}


def splits(root):
    return {split: partial(sop, root, split) for split in ("train", "test")}


def test_a_complete_copy_has_no_problems(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1, 2, 2), test=(3, 3))
    report = verify(splits(root), SIZES, progress=False)
    assert report.facts == ("train: 4 images of 2 classes, as published", "test: 2 images of 1 classes, as published")
    assert report.problems == ()


def test_other_sizes_are_problems_and_the_images_are_read(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1, 2, 2), test=(3, 3))
    path = sop(root, "test").paths[1]
    path.write_text("no image")
    report = verify(splits(root), SIZES | {"train": SplitSize(5, 2)}, progress=False)
    assert report.facts[0] == "train: 4 images of 2 classes, published: 5 images of 2 classes"
    difference, unreadable = report.problems
    assert difference == "This is not the published dataset: the sizes differ."
    assert unreadable.startswith(f"{path} must be a complete image file, got")


def test_an_error_in_one_split_does_not_stop_the_others(tmp_path):
    root = layouts.sop(tmp_path, train=(1, 1), test=(3, 3))
    sop(root, "train").paths[0].unlink()
    sop(root, "test").paths[0].write_text("no image")
    report = verify(splits(root), {}, progress=False)
    assert report.facts == ("test: 2 images of 1 classes",)
    assert [problem.split(" must")[0] for problem in report.problems] == [
        "Every image in Ebay_train.txt",
        str(sop(root, "test").paths[0]),
    ]


def test_an_error_of_all_splits_is_reported_once(tmp_path):
    assert len(verify(splits(tmp_path), {}, progress=False).problems) == 1


def test_a_truncated_image_is_found_unless_quick(tmp_path):
    layouts.save_image(tmp_path / "1.jpg")
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:-20])
    folder = {"folder": partial(image_folder, tmp_path)}
    assert "truncated" in verify(folder, {}, progress=False).problems[0]
    assert verify(folder, {}, quick=True, progress=False).problems == ()


def test_classes_with_a_single_image_and_identical_files_are_facts(tmp_path):
    for name, number in (("a/1", 1), ("a/2", 2), ("b/1", 2), ("c/1", 3)):
        layouts.save_image(tmp_path / f"{name}.png", number)
    report = verify({"folder": partial(image_folder, tmp_path)}, {}, progress=False)
    identical = f"identical files: {tmp_path / 'a' / '2.png'} and {tmp_path / 'b' / '1.png'}"
    assert report.facts == ("folder: 4 images of 3 classes", "folder: classes with a single image: 2", identical)
    assert report.problems == ()


def test_images_without_classes_are_counted(tmp_path):
    layouts.save_image(tmp_path / "1.png")
    report = verify({"folder": partial(image_folder, tmp_path)}, {}, progress=False)
    assert report.facts == ("folder: 1 images without classes",)
