import sys

import jaxtyping
import pytest
import torch
from PIL import Image

from udmlss.data import cub200


def write(root, n_classes=5, each=3, lists=None):
    """A folder in CUB's layout; image i of class c is of one colour that tells both."""
    names, files, labels = [], [], []
    for number in range(1, n_classes + 1):
        name = f"{number:03}.Bird_{number}"
        (root / "images" / name).mkdir(parents=True)
        names.append(f"{number} {name}")
        for image in range(each):
            identifier = len(files) + 1
            Image.new("L", (6, 4), 10 * number + image).save(root / "images" / name / f"{image}.png")
            files.append(f"{identifier} {name}/{image}.png")
            labels.append(f"{identifier} {number}")
    texts = {"classes.txt": names, "images.txt": files, "image_class_labels.txt": labels} | (lists or {})
    for file, lines in texts.items():
        (root / file).write_text("\n".join(lines) + "\n")
    return root


def test_the_first_half_of_the_classes_trains_and_the_rest_tests(tmp_path):
    root = write(tmp_path)
    train, test = cub200(root, "train"), cub200(root, "test")
    assert train.classes == ["001.Bird_1", "002.Bird_2"]
    assert test.classes == ["003.Bird_3", "004.Bird_4", "005.Bird_5"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert repr(test) == "ImageFiles(9 images of 3 classes)"


def test_images_come_in_the_order_of_the_list_in_rgb_with_their_own_label(tmp_path):
    test = cub200(write(tmp_path), "test")
    for index, (image, label) in enumerate(test[i] for i in range(len(test))):
        number, nth = label + 3, index % 3
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (10 * number + nth,) * 3


def test_a_transform_is_applied_to_the_image_alone(tmp_path):
    train = cub200(write(tmp_path), "train", transform=lambda image: image.size)
    assert train[0] == ((6, 4), 0)


def test_the_folder_above_will_do(tmp_path):
    write(tmp_path / "CUB_200_2011")
    assert len(cub200(tmp_path, "train")) == 6


def test_real_photographs_are_read(cub100):
    train, test = cub200(cub100, "train"), cub200(cub100, "test")
    assert (len(train), len(test)) == (2949, 2953)
    assert len(train.classes) == len(test.classes) == 50
    assert not set(train.paths) & set(test.paths)
    assert train[0][0].size == (227, 227)


@pytest.mark.parametrize(("made", "found"), [(False, "no such folder"), (True, "an empty folder")])
def test_a_folder_in_another_layout_is_refused_with_what_was_looked_for_and_found(tmp_path, made, found):
    root = tmp_path / "here"
    if made:
        root.mkdir()
    with pytest.raises(ValueError, match=rf"here must be a folder.*images\.txt.*images/, got {found}\. Pass the"):
        cub200(root, "train")


def test_lists_that_contradict_each_other_are_refused_with_their_lengths(tmp_path):
    root = write(tmp_path, lists={"image_class_labels.txt": ["1 1", "2 1"]})
    with pytest.raises(ValueError, match=r"same images and classes, got 15 images, 2 labels and 5 classes"):
        cub200(root, "train")


@pytest.mark.parametrize(
    ("lines", "found"), [(["1 a", "b"], "'b' in line 2"), (["x y"], "'x y' in line 1"), ([], "an empty file")]
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path, lines, found):
    root = write(tmp_path, lists={"classes.txt": lines})
    with pytest.raises(ValueError, match=rf"Each line of .*classes\.txt must be a number and a word, got {found}"):
        cub200(root, "train")


def test_empty_lines_are_left_out_and_counted(tmp_path):
    lines = ["1 001.Bird_1/0.png", "", "x"]
    with pytest.raises(ValueError, match="must be a number and a word, got 'x' in line 3"):
        cub200(write(tmp_path, lists={"images.txt": lines}), "train")


@pytest.mark.parametrize("again", ["3 001.Bird_1/0.png", "1 001.Bird_1/2.png"])
def test_an_image_or_a_number_that_stands_twice_is_refused(tmp_path, again):
    lines = ["1 001.Bird_1/0.png", "2 001.Bird_1/1.png", again]
    root = write(tmp_path, n_classes=1, lists={"images.txt": lines})
    with pytest.raises(
        ValueError, match=r"Each name must stand once in .*images\.txt, got 1 of 3 there again, the first"
    ):
        cub200(root, "test")


def test_an_archive_that_is_not_unpacked_is_met_with_the_line_that_unpacks_it(tmp_path):
    (tmp_path / "CUB_200_2011.tgz").touch()
    with pytest.raises(
        ValueError, match=rf"Unpack the archive: `python -m udmlss\.data cub200 {tmp_path} --unpack`\.$"
    ):
        cub200(tmp_path, "train")


def test_a_half_unpacked_folder_is_refused_with_what_lies_in_it(tmp_path):
    root = write(tmp_path / "CUB_200_2011")
    (root / "classes.txt").unlink()
    rule = rf"{root} must be a folder in .*, got \['image_class_labels\.txt', 'images', 'images\.txt'\]\. Pass the"
    with pytest.raises(ValueError, match=rule):
        cub200(tmp_path, "train")


def test_a_picture_that_is_not_there_is_named_at_once(tmp_path):
    root = write(tmp_path)
    gone = root / "images" / "002.Bird_2" / "1.png"
    gone.unlink()
    with pytest.raises(ValueError, match=rf"must be there, got 1 of 6 missing, the first is {gone}"):
        cub200(root, "train")


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_file_that_is_no_whole_image_is_named_when_it_is_taken(tmp_path, content):
    root = write(tmp_path)
    path = root / "images" / "001.Bird_1" / "0.png"
    if content is None:
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:800]
    path.write_bytes(content)
    train = cub200(root, "train")
    with pytest.raises(OSError, match=rf"{path} must be a whole image file; found: .*\. Download or unpack"):
        train[0]
    assert train[1][1] == 0


def test_a_file_that_is_no_whole_image_is_named_through_training_as_well(tmp_path):
    from udmlss import embed  # noqa: PLC0415

    root = write(tmp_path)
    path = root / "images" / "001.Bird_1" / "2.png"
    path.write_bytes(b"no picture")
    train = cub200(root, "train", transform=lambda image: torch.zeros(3, 4, 4))
    with pytest.raises(OSError, match="must be a whole image file") as caught:
        embed(torch.nn.Flatten(), train)
    assert caught.value.__notes__ == ["while taking item 2 of `images`"]


def test_another_split_is_refused(tmp_path):
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003
    try:
        with pytest.raises(ValueError, match="`split` must be one of 'train', 'test'"):
            cub200(write(tmp_path), "val")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)  # noqa: FBT003


def test_without_pillow_the_line_to_type_is_said(tmp_path, monkeypatch):
    train = cub200(write(tmp_path), "train")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "udmlss\[demo\]"'):
        train[0]
