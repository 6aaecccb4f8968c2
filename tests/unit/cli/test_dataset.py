import hashlib
import tarfile
import zipfile
from dataclasses import replace

import layouts
import pytest

from udmlss import cli
from udmlss.data.published import verification
from udmlss.data.published.layout import SplitSize


@pytest.fixture
def run(capsys):
    """Return a function that runs the command and returns its exit status and what it printed."""

    def run_command(*arguments):
        status = cli.main(["dataset", *map(str, arguments)])
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err

    return run_command


@pytest.fixture
def publish(monkeypatch):
    """Return a function that replaces fields of a published dataset."""

    def replace_fields(name, **fields):
        dataset, open_split = verification.DATASETS[name]
        monkeypatch.setitem(verification.DATASETS, name, (replace(dataset, **fields), open_split))

    return replace_fields


def write_cub_archive(root):
    """Write the archive as it is published, with attributes.txt next to the folder of the dataset."""
    folder = layouts.cub200(root / "elsewhere" / "CUB_200_2011")
    (root / "data").mkdir()
    (folder.parent / "attributes.txt").touch()
    with tarfile.open(root / "data" / "CUB_200_2011.tgz", "w:gz") as archive:
        for path in (folder, folder.parent / "attributes.txt"):
            archive.add(path, path.name)
    return root / "data" / "CUB_200_2011.tgz"


def test_a_complete_copy_has_no_problems(tmp_path, monkeypatch, run, publish):
    publish("sop", splits={"train": SplitSize(3, 2), "test": SplitSize(4, 2)})
    layouts.sop(tmp_path / "sop")
    monkeypatch.setenv("HOME", str(tmp_path))
    status, lines, _ = run("sop", "~/sop")
    assert status == 0
    assert lines == [
        "train: 3 images of 2 classes, as published",
        "test: 4 images of 2 classes, as published",
        "train: classes with a single image: 1",
        "No problems found.",
    ]


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop"])
def test_a_small_dataset_in_each_layout_differs_from_the_published_one(tmp_path, run, name):
    status, lines, _ = run(name, getattr(layouts, name)(tmp_path))
    assert status == 1
    assert lines[-2:] == ["This is not the published dataset: the sizes differ.", "1 problem found."]


def test_photographs_in_the_layout_of_cub200_are_counted(cub100, run):
    status, lines, _ = run("cub200", cub100, "--quick")
    assert status == 1
    assert lines == [
        "train: 2949 images of 50 classes, published: 5864 images of 100 classes",
        "test: 2953 images of 50 classes, published: 5924 images of 100 classes",
        "This is not the published dataset: the sizes differ.",
        "1 problem found.",
    ]


def test_unpacks_the_archive_in_its_folder_and_verifies_it(tmp_path, run, publish):
    archive = write_cub_archive(tmp_path)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    publish("cub200", md5={archive.name: md5}, splits={"train": SplitSize(2, 1), "test": SplitSize(2, 1)})
    status, lines, _ = run("cub200", archive.parent)
    assert (status, f"udmlss dataset cub200 {archive.parent} --unpack" in lines[0]) == (1, True)
    status, lines, _ = run("cub200", archive.parent, "--unpack")
    assert (status, lines[-1]) == (0, "No problems found.")
    assert {path.name for path in archive.parent.iterdir()} == {"CUB_200_2011", "CUB_200_2011.tgz", "attributes.txt"}


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path, run):
    archive = write_cub_archive(tmp_path)
    status, lines, error = run("cub200", archive.parent, "--unpack")
    assert (status, lines) == (2, [])
    assert f"{archive} must have the published MD5 97eceeb" in error
    assert [*archive.parent.iterdir()] == [archive]


def test_images_of_inshop_are_unpacked_next_to_their_archive(tmp_path, run, publish):
    source = layouts.inshop(tmp_path / "elsewhere")
    (tmp_path / "Img").mkdir()
    with zipfile.ZipFile(tmp_path / "Img" / "img.zip", "w") as archive:
        for path in sorted((source / "Img").rglob("*")):
            archive.write(path, path.relative_to(source / "Img"))
    (source / "Eval").rename(tmp_path / "Eval")
    publish("inshop", splits={"train": SplitSize(3, 2), "query": SplitSize(2, 2), "gallery": SplitSize(2, 2)})
    assert run("inshop", tmp_path, "--unpack")[0] == 0


def test_the_checksum_of_annotations_next_to_the_archive_is_checked(tmp_path, run, publish):
    layouts.cars196(tmp_path)
    with tarfile.open(tmp_path / "car_ims.tgz", "w:gz") as archive:
        archive.add(tmp_path / "car_ims", "car_ims")
    publish("cars196", md5={"cars_annos.mat": "0123"})
    assert f"{tmp_path / 'cars_annos.mat'} must have the published MD5 0123" in run("cars196", tmp_path, "--unpack")[2]


def test_images_are_unpacked_without_annotations(tmp_path, run, publish):
    publish("cars196", md5={"cars_annos.mat": "0123"})
    layouts.save_image(tmp_path / "elsewhere" / "car_ims" / "000001.jpg")
    with tarfile.open(tmp_path / "car_ims.tgz", "w:gz") as archive:
        archive.add(tmp_path / "elsewhere" / "car_ims", "car_ims")
    status, lines, _ = run("cars196", tmp_path, "--unpack")
    assert (status, (tmp_path / "car_ims" / "000001.jpg").is_file()) == (1, True)
    assert "got ['car_ims', 'car_ims.tgz', 'elsewhere']. Pass the folder that contains them" in lines[0]


def test_unpack_requires_an_archive(tmp_path, run):
    status, _, error = run("inshop", tmp_path, "--unpack")
    assert status == 2
    expected = f"--unpack requires Img/img.zip or img.zip in {tmp_path}, got none. Download it, or omit --unpack."
    assert error == f"udmlss: error: {expected}\n"


def test_prints_the_first_ten_problems(tmp_path, run):
    root = layouts.sop(tmp_path, train=(1,) * 12, test=(2, 2))
    for path in verification.sop(root, "train").paths:
        path.write_text("no image")
    status, lines, _ = run("sop", root)
    assert status == 1
    assert lines[-2:] == ["... and 3 more", "13 problems found."]


def test_quick_does_not_read_the_images(tmp_path, run):
    root = layouts.sop(tmp_path)
    verification.sop(root, "train").paths[0].write_text("no image")
    assert [run("sop", root, *quick)[1][-1] for quick in ((), ("--quick",))] == [
        "2 problems found.",
        "1 problem found.",
    ]


def test_rejects_wrong_arguments(run, capsys):
    status, lines, error = run("sop", "no/such/place")
    assert (status, lines) == (2, [])
    assert "ROOT must be a folder, got no/such/place" in error
    with pytest.raises(SystemExit) as caught:
        run("cub", ".")
    assert caught.value.code == 2
    assert "NAME: invalid choice: 'cub' (choose from 'cub200', 'cars196', 'sop', 'inshop')" in capsys.readouterr().err
