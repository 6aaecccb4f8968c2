import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import layouts
import pytest

from udmlss.data import __main__ as command
from udmlss.data.catalog import Split


def said(capsys, *arguments):
    code = command.main(list(map(str, arguments)))
    return code, capsys.readouterr()


def publish(monkeypatch, name, **fields):
    """Publish another data set in its place."""
    opener, published = command._OPENERS[name]
    monkeypatch.setitem(command._OPENERS, name, (opener, replace(published, **fields)))


def cub_archive(root):
    """Pack the archive as its authors did: attributes.txt lies beside the folder."""
    inside = layouts.cub200(root / "elsewhere" / "CUB_200_2011")
    (root / "data").mkdir()
    (inside.parent / "attributes.txt").touch()
    with tarfile.open(root / "data" / "CUB_200_2011.tgz", "w:gz") as archive:
        for path in (inside, inside.parent / "attributes.txt"):
            archive.add(path, path.name)
    return root / "data" / "CUB_200_2011.tgz"


def test_all_is_well_with_a_copy_as_published(tmp_path, capsys, monkeypatch):
    publish(monkeypatch, "sop", splits={"train": Split(3, 2), "test": Split(4, 2)})
    code, output = said(capsys, "sop", layouts.sop(tmp_path))
    assert code == 0
    assert output.out.splitlines() == [
        "train: 3 images of 2 classes, as published",
        "test: 4 images of 2 classes, as published",
        "train: 1 of the classes with one image",
        "All is well.",
    ]


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop"])
def test_a_small_copy_in_each_layout_is_opened_and_is_not_the_published_one(tmp_path, capsys, name):
    code, output = said(capsys, name, getattr(layouts, name)(tmp_path))
    assert code == 1
    assert output.out.splitlines()[-2:] == ["Not the published data set: counts differ.", "1 problem."]


def test_photographs_in_cubs_layout_are_read_and_are_not_the_published_ones(cub100, capsys):
    code, output = said(capsys, "cub200", cub100)
    assert code == 1
    assert output.out.splitlines() == [
        "train: 2949 images of 50 classes, published 5864 of 100",
        "test: 2953 images of 50 classes, published 5924 of 100",
        "Not the published data set: counts differ.",
        "1 problem.",
    ]


def test_the_archive_is_unpacked_where_it_lies_and_then_checked(tmp_path, capsys, monkeypatch):
    archive = cub_archive(tmp_path)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    splits = {"train": Split(2, 1), "test": Split(2, 1)}
    publish(monkeypatch, "cub200", md5={archive.name: md5}, splits=splits)
    code, output = said(capsys, "cub200", archive.parent)
    assert (code, f"python -m udmlss.data cub200 {archive.parent} --unpack" in output.out) == (1, True)
    code, output = said(capsys, "cub200", archive.parent, "--unpack")
    assert (code, output.out.splitlines()[-1]) == (0, "All is well.")
    assert {path.name for path in archive.parent.iterdir()} == {"CUB_200_2011", "CUB_200_2011.tgz", "attributes.txt"}


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(tmp_path, capsys):
    archive = cub_archive(tmp_path)
    code, output = said(capsys, "cub200", archive.parent, "--unpack")
    assert (code, output.out) == (1, "")
    assert f"{archive} must have the published MD5 97eceeb" in output.err
    assert [*archive.parent.iterdir()] == [archive]


def test_inshops_pictures_are_unpacked_beside_their_archive(tmp_path, capsys, monkeypatch):
    made = layouts.inshop(tmp_path / "elsewhere")
    (tmp_path / "Img").mkdir()
    with zipfile.ZipFile(tmp_path / "Img" / "img.zip", "w") as archive:
        for path in sorted((made / "Img").rglob("*")):
            archive.write(path, path.relative_to(made / "Img"))
    (made / "Eval").rename(tmp_path / "Eval")
    publish(monkeypatch, "inshop", splits={"train": Split(3, 2), "query": Split(2, 2), "gallery": Split(2, 2)})
    assert said(capsys, "inshop", tmp_path, "--unpack")[0] == 0


def test_annotations_beside_the_archive_are_checked_as_well(tmp_path, capsys):
    layouts.cars196(tmp_path)
    with tarfile.open(tmp_path / "car_ims.tgz", "w:gz") as archive:
        archive.add(tmp_path / "car_ims", "car_ims")
    assert "must have the published MD5" in said(capsys, "cars196", tmp_path, "--unpack")[1].err


def test_annotations_that_are_not_there_are_not_missed_before_the_pictures_are_unpacked(tmp_path, capsys, monkeypatch):
    publish(monkeypatch, "cars196", md5={"cars_annos.mat": "none"})
    layouts.picture(tmp_path / "elsewhere" / "car_ims" / "000001.jpg")
    with tarfile.open(tmp_path / "car_ims.tgz", "w:gz") as archive:
        archive.add(tmp_path / "elsewhere" / "car_ims", "car_ims")
    code, output = said(capsys, "cars196", tmp_path, "--unpack")
    assert (code, (tmp_path / "car_ims" / "000001.jpg").is_file()) == (1, True)
    assert "found ['car_ims', 'car_ims.tgz', 'elsewhere']. Pass the folder that holds all of these" in output.out


def test_without_an_archive_there_is_nothing_to_unpack(tmp_path, capsys):
    code, output = said(capsys, "inshop", tmp_path, "--unpack")
    assert code == 1
    assert output.err.startswith(f"`--unpack` needs Img/img.zip or img.zip in {tmp_path}, got none. Download it")


def test_a_folder_of_ones_own_is_checked(tmp_path, capsys):
    layouts.picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no picture")
    code, output = said(capsys, "folder", tmp_path)
    assert code == 1
    assert output.out.splitlines()[0] == "folder: 2 images without classes"
    assert "2.png must be a whole image file" in output.out
    assert said(capsys, "folder", tmp_path, "--quick")[0] == 0


def test_of_many_lines_the_first_ten_are_shown(tmp_path, capsys):
    for number in range(12):
        (tmp_path / f"{number}.png").write_text("no picture")
    code, output = said(capsys, "folder", tmp_path)
    assert code == 1
    assert len(output.out.splitlines()) == 13
    assert output.out.splitlines()[-2:] == ["... and 2 more", "12 problems."]


def test_without_pillow_the_line_to_type_is_said(tmp_path, capsys, monkeypatch):
    layouts.picture(tmp_path / "1.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, output = said(capsys, "folder", tmp_path)
    assert code == 1
    assert 'pip install "udmlss[demo]"' in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cub", "."], "invalid choice: 'cub'"),
        (["sop"], "the following arguments are required: root"),
        (["sop", "no/such/place"], "no/such/place is no folder"),
        (["folder", ".", "--unpack"], "--unpack is for data sets with a published archive"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_its_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_it_runs_from_the_command_line_without_a_traceback(tmp_path):
    line = [sys.executable, "-m", "udmlss.data", "cars196", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 problem."
    assert "Traceback" not in done.stderr
