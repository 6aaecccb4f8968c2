import os

import pytest
from layouts import save_image

from udmlss.data import find_images, image_folder


def test_each_folder_is_a_class_and_names_are_sorted(tmp_path, monkeypatch):
    for number, file in enumerate(("cat/b.png", "ant/z.PNG", "cat/a.jpeg", "bee/deep/down/x.webp")):
        save_image(tmp_path / "photos" / file, number)
    monkeypatch.setenv("HOME", str(tmp_path))
    images = image_folder("~/photos")
    assert images.classes == ["ant", "bee", "cat"]
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert [path.name for path in images.paths] == ["z.PNG", "x.webp", "a.jpeg", "b.png"]
    assert images[3][1] == 2
    assert repr(images) == "ImageFiles(4 images of 3 classes)"


def test_images_without_folders_have_no_class(tmp_path):
    for number in range(3):
        save_image(tmp_path / f"{number}.png", number)
    images = image_folder(tmp_path, transform=lambda image: image.getpixel((0, 0))[0])
    assert [images[index] for index in range(3)] == [(0, -1), (1, -1), (2, -1)]
    assert images.classes == []
    assert repr(images) == "ImageFiles(3 images without classes)"


def test_hidden_files_and_other_files_are_ignored(tmp_path):
    save_image(tmp_path / "cat" / "1.png")
    for name in (".DS_Store", "README.txt", ".cache/1.png", "cat/._1.png", "cat/.thumbnails/1.png", "cat/notes.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in image_folder(tmp_path).paths] == ["1.png"]


def test_a_folder_without_images_next_to_images_is_ignored(tmp_path):
    save_image(tmp_path / "1.png")
    (tmp_path / "notes").mkdir()
    assert image_folder(tmp_path).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("folders", "found"), [(None, "no such folder"), ((), "none"), (("a", "b"), "none in 2 folders")]
)
def test_rejects_a_folder_without_images(tmp_path, folders, found):
    root = tmp_path / "here"
    for folder in (".", *folders) if folders is not None else ():
        (root / folder).mkdir()
    with pytest.raises(ValueError, match=rf"here must contain images with the suffix \.avif, .*, got {found}\. Pass"):
        image_folder(root)


def test_rejects_a_folder_of_images_that_are_not_opened_with_a_warning_that_names_them(tmp_path):
    (tmp_path / "1.heic").touch()
    with pytest.warns(UserWarning, match=r"1\.heic"), pytest.raises(ValueError, match="must contain images"):
        image_folder(tmp_path)


@pytest.mark.parametrize("exclude", ["", ".", ["a", ""]])
def test_rejects_an_empty_pattern(tmp_path, exclude):
    save_image(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"`exclude` must hold names, .*, got an empty path or '\.'\. Pass \(\)"):
        image_folder(tmp_path, exclude=exclude)


def test_rejects_images_next_to_folders_of_images(tmp_path):
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "cat" / "2.png")
    with pytest.raises(
        ValueError,
        match=r"either images or one folder per class, got 1\.png and cat/\. Move .*, or pass exclude='cat'\.",
    ):
        image_folder(tmp_path)


def test_rejects_a_class_without_images(tmp_path):
    save_image(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.txt").touch()
    with pytest.raises(
        ValueError, match=r"with the suffix .*, got none in 1 of 2 folders, the first is dog/\. Remove or exclude it"
    ):
        image_folder(tmp_path)


def names(images):
    return [path.name for path in images.paths]


def test_images_of_other_common_formats_are_opened(tmp_path):
    for name in ("a.GIF", "b.jfif", "c.tga", "d.jp2", "e.JPE", "f.pbm"):
        save_image(tmp_path / name)
    assert names(image_folder(tmp_path)) == ["a.GIF", "b.jfif", "c.tga", "d.jp2", "e.JPE", "f.pbm"]


def test_a_warning_names_unsupported_images_and_broken_links(tmp_path):
    for name in ("cat/1.png", "dog/1.png"):
        save_image(tmp_path / name)
    (tmp_path / "dog" / "IMG_1.HEIC").touch()
    (tmp_path / "missing").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "cat" / "2.png").symlink_to("no/such/file.png")
    os.mkfifo(tmp_path / "cat" / "3.png")
    unopened = ", ".join(["itself", "missing", *(os.path.join("cat", f"{number}.png") for number in (2, 3))])  # noqa: PTH118
    with pytest.warns(UserWarning, match=rf"^5 files in {tmp_path} are not opened, .*: {unopened}, dog.IMG_1\.HEIC\."):
        images = image_folder(tmp_path)
    assert (names(images), images.classes) == (["1.png", "1.png"], ["cat", "dog"])


def test_links_are_followed_at_every_level(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    for path in (root / "dog" / "1.png", other / "cats" / "2.png", other / "more" / "deep" / "3.png"):
        save_image(path)
    (root / "cat").symlink_to(other / "cats")
    (root / "dog" / "more").symlink_to(other / "more")
    (other / "more" / "deep" / "cats").symlink_to(other / "cats")
    (root / "dog" / "link.png").symlink_to(other / "cats" / "2.png")
    (tmp_path / "linked").symlink_to(root)
    images = image_folder(tmp_path / "linked")
    assert images.classes == ["cat", "dog"]
    relative = [path.relative_to(tmp_path / "linked").as_posix() for path in images.paths]
    assert relative == [
        "cat/2.png",
        "dog/1.png",
        "dog/link.png",
        "dog/more/deep/3.png",
        "dog/more/deep/cats/2.png",
    ]


def test_a_link_to_a_folder_that_contains_it_is_not_followed(tmp_path):
    save_image(tmp_path / "root" / "dog" / "deep" / "1.png")
    save_image(tmp_path / "root" / "cat" / "2.png")
    for target in ("root", "root/dog", "root/dog/deep"):
        (tmp_path / "root" / "dog" / "deep" / f"to_{target.split('/')[-1]}").symlink_to(tmp_path / target)
    (tmp_path / "root" / "cat" / "dogs").symlink_to(tmp_path / "root" / "dog")
    images = image_folder(tmp_path / "root")
    assert [path.relative_to(tmp_path / "root").as_posix() for path in images.paths] == [
        "cat/2.png",
        "cat/dogs/deep/1.png",
        "dog/deep/1.png",
    ]


def test_two_folders_with_links_to_each_other_end(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / name / "1.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert len(image_folder(tmp_path)) == 4


@pytest.mark.parametrize("exclude", ["runs", ["runs", "nothing"], "r*s", "{root}/runs", "runs/"])
def test_an_output_folder_is_excluded(tmp_path, monkeypatch, exclude):
    for name in ("1.png", "2.png", "runs/plot.png"):
        save_image(tmp_path / name)
    monkeypatch.chdir(tmp_path.parent)
    exclude = exclude.format(root=tmp_path) if isinstance(exclude, str) else exclude
    assert names(image_folder(tmp_path.name, exclude=exclude)) == ["1.png", "2.png"]


def test_a_warning_names_a_class_that_may_be_an_output_folder(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "runs/plots/1.png"):
        save_image(tmp_path / name)
    (tmp_path / "runs" / "step-000000010.pt").touch()
    with pytest.warns(
        UserWarning, match=r"^runs/ in .* contains model files and is opened as a class\. Pass exclude='runs'"
    ):
        assert image_folder(tmp_path).classes == ["cat", "dog", "runs"]
    assert image_folder(tmp_path, exclude="runs").classes == ["cat", "dog"]


def test_patterns_exclude_files_and_folders_at_every_depth(tmp_path):
    for name in ("cat/1.png", "cat/1_mask.png", "cat/deep/runs/2.png", "dog/x/3.png", "dog/y/3.png", "runs/4.png"):
        save_image(tmp_path / name)
    images = image_folder(tmp_path, exclude=["runs", "*_mask.png", tmp_path / "dog" / "x"])
    assert [path.relative_to(tmp_path).as_posix() for path in images.paths] == ["cat/1.png", "dog/y/3.png"]


def test_options_are_passed_on(tmp_path):
    save_image(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 of 2 images cannot be read and are skipped: .*2\.png \(cannot identify"):
        images = image_folder(tmp_path, background="red", value_range=(0, 9), min_size=7, on_error="skip")
    assert (images.background, images.value_range, images.min_size) == ((255, 0, 0), (0, 9), 7)
    assert [path.name for path, _ in images.skipped] == ["2.png"]


def test_images_at_every_depth_are_found(tmp_path, monkeypatch):
    for name in ("b/2.png", "1.JPG", "b/c/0.webp", "a/.hidden/1.png", "a/3.png", "runs/plot.png", ".thumbnails/1.png"):
        save_image(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").touch()
    (tmp_path / "photos" / "b" / "back").symlink_to(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = find_images("~/photos", exclude="runs")
    assert [str(path.relative_to(tmp_path / "photos")) for path in paths] == [
        "1.JPG",
        "a/3.png",
        "b/2.png",
        "b/c/0.webp",
    ]


def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    save_image(tmp_path / "1.png")
    (tmp_path / "lost+found").mkdir()
    usual = os.scandir

    def scan(folder):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return usual(folder)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(
        PermissionError, match=r"lost\+found must be a readable folder, got Permission denied\. Change its"
    ):
        find_images(tmp_path)
    assert len(find_images(tmp_path, exclude="lost+found")) == 1


def test_finding_images_names_what_is_not_opened_and_requires_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").symlink_to("nowhere.png")
    (tmp_path / "IMG_1.HEIC").touch()
    with (
        pytest.warns(UserWarning, match=r"2 files .* are not opened, .*: IMG_1\.HEIC, a.1\.png\. Convert or repair"),
        pytest.raises(ValueError, match=r"must contain images with the suffix .*, got none\. Pass the folder that"),
    ):
        find_images(tmp_path)
    with pytest.raises(ValueError, match=r"got no such folder\."):
        find_images(tmp_path / "missing")
