"""Images below a folder or in a list."""

import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from udmlss import cli
from udmlss.cli import images
from udmlss.cli.images import advise_skipping, open_images
from udmlss.data.image_reader import describe_damage


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with `photos`, which has two images and a file that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "deep/er/b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_a_folder_and_a_list_of_its_paths_have_the_same_absolute_paths(folder):
    expected = [folder / "photos" / name for name in ("a.png", "broken.png", "deep/er/b.png")]
    assert list(open_images("photos")) == expected
    (folder / "list.txt").write_text("photos/a.png\nphotos/broken.png\nphotos/deep/er/b.png\n")
    assert list(open_images("list.txt")) == expected


def test_unreadable_images_are_left_out_on_request_with_a_warning(folder):
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be read and are skipped: .*broken.png"):
        found = open_images("photos", skip_unreadable=True)
    assert [path.name for path in found] == ["a.png", "b.png"]


def test_a_path_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"`folder` must be a folder of images.*, got none, which does not exist"):
        open_images("none")


def test_a_file_that_is_not_a_list_is_an_error_with_a_remedy_for_the_shell(folder):
    with pytest.raises(ValueError, match=r"`folder` must be a folder of .*, got photos/a\.png\. Pass the folder that"):
        open_images("photos/a.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_names_that_no_table_could_hold_are_one_error(folder):
    for name in (b"photos/\xfe.png", b"photos/\xff.png"):
        Image.new("RGB", (8, 8)).save(folder / "photos" / "c.png")
        (folder / "photos" / "c.png").rename(folder / os.fsdecode(name))
    with pytest.raises(ValueError, match=r"must be valid Unicode, got .*udcfe\.png', .*udcff\.png'\. Rename"):
        open_images("photos")


def test_a_path_that_is_listed_twice_is_an_error(folder):
    (folder / "list.txt").write_text("photos/a.png\nphotos/a.png\n")
    with pytest.raises(ValueError, match=r"Each image must be listed once, got .*a\.png twice"):
        open_images("list.txt")


def test_check_returns_and_writes_the_findings(folder):
    found = cli.check("photos", out="findings.csv", progress=False)
    assert [path.name for path in found.readable] == ["a.png", "b.png"]
    assert "broken" in str(found)
    assert (folder / "findings.csv").read_text().splitlines()[0] == "kind,path,detail"


def test_check_ends_with_exit_code_1_if_a_file_is_broken(folder, capsys):
    assert cli.main(["check", "photos"]) == 1
    (folder / "photos" / "broken.png").unlink()
    assert cli.main(["check", "photos"]) == 0
    assert "identical" in capsys.readouterr().out


@pytest.mark.parametrize(("out", "error"), [("photos/a.png", ValueError), ("photos/a.png/b.csv", OSError)])
def test_check_finds_a_wrong_output_file_before_it_reads(folder, monkeypatch, out, error):
    monkeypatch.setattr(images, "open_images", None)
    before = (folder / "photos" / "a.png").read_bytes()
    with pytest.raises(error, match=r"a\.png"):
        cli.check("photos", out=out)
    assert (folder / "photos" / "a.png").read_bytes() == before


def test_skipping_is_advised_for_files_that_can_be_skipped_only():
    damage = describe_damage(Path("a.png"), "3 bytes")
    for message, expected in ((damage, f"{damage} Pass `skip_unreadable` to skip such files."), ("Full", "Full")):
        with pytest.raises(OSError, match=f"^{re.escape(expected)}$"), advise_skipping():
            raise OSError(message)
