import pytest
from layouts import picture

from udmlss.data import image_folder


def test_each_folder_is_a_class_sorted_by_name(tmp_path):
    for number, file in enumerate(("cat/b.png", "ant/z.PNG", "cat/a.jpeg", "bee/deep/down/x.webp")):
        picture(tmp_path / file, number)
    images = image_folder(tmp_path)
    assert images.classes == ["ant", "bee", "cat"]
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert [path.name for path in images.paths] == ["z.PNG", "x.webp", "a.jpeg", "b.png"]
    assert images[3][1] == 2


def test_pictures_without_folders_have_no_class(tmp_path):
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    images = image_folder(tmp_path, transform=lambda image: image.getpixel((0, 0))[0])
    assert [images[index] for index in range(3)] == [(0, -1), (1, -1), (2, -1)]
    assert len(images.classes) == 0
    assert repr(images) == "ImageFiles(3 images without classes)"


def test_what_is_hidden_and_what_is_no_picture_is_left_out(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    for name in (".DS_Store", "README.txt", ".cache/1.png", "cat/._1.png", "cat/.thumbnails/1.png", "cat/notes.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in image_folder(tmp_path).paths] == ["1.png"]


def test_a_folder_without_pictures_beside_pictures_is_no_class(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "notes").mkdir()
    assert image_folder(tmp_path).labels.tolist() == [-1]


def test_a_class_may_have_one_picture(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / name / "1.png")
    assert image_folder(tmp_path).labels.tolist() == [0, 1]


def test_text_by_the_name_of_a_picture_is_named_when_it_is_taken(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    images = image_folder(tmp_path)
    with pytest.raises(OSError, match=r"text\.jpg must be a whole image file"):
        images[0]


@pytest.mark.parametrize(
    ("folders", "found"), [(None, "no such folder"), ((), "none"), (("a", "b"), "none in 2 folders")]
)
def test_a_folder_without_any_picture_is_refused_with_the_endings_looked_for(tmp_path, folders, found):
    root = tmp_path / "here"
    for folder in (".", *folders) if folders is not None else ():
        (root / folder).mkdir()
    with pytest.raises(ValueError, match=rf"here must hold pictures, in \.bmp, .*, got {found}\. Pass the folder"):
        image_folder(root)


def test_pictures_beside_folders_of_pictures_are_refused(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "cat" / "2.png")
    with pytest.raises(ValueError, match=r"or a folder per class, not both, got 1\.png beside cat/\. Move"):
        image_folder(tmp_path)


def test_a_class_without_pictures_is_refused(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.heic").touch()
    with pytest.raises(ValueError, match=r"must hold pictures, in .*, got none in 1 of 2, the first is dog/\. Take"):
        image_folder(tmp_path)
