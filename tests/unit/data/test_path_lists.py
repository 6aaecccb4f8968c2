import pickle
import sys

import pyarrow as pa
import pytest
from layouts import save_image
from pyarrow import csv, parquet

from udmlss.data import ImageFiles, read_paths
from udmlss.data.path_lists import PathList


def test_paths_are_a_sequence_of_one_object(tmp_path):
    names = ["a.png", "\u00e9/\u4e2d.png", "x" * 200 + ".png"]
    paths = PathList([tmp_path / name for name in names])
    assert list(paths) == [tmp_path / name for name in names]
    assert paths[-1] == tmp_path / names[-1]
    assert paths[1:] == [tmp_path / name for name in names[1:]]
    assert paths != [tmp_path / name for name in names[1:]]
    assert repr(paths) == repr(list(paths))
    assert pickle.loads(pickle.dumps(paths)) == paths  # noqa: S301 (pickled here)
    with pytest.raises(IndexError):
        paths[3]
    assert PathList([]) == []


def test_many_paths_are_pickled_as_one_block():
    many = ImageFiles(["folder/image.png"] * 20_000).paths
    assert len(pickle.dumps(many)) < 20_000 * (len("folder/image.png") + 9)
    assert sys.getsizeof(many._bytes) < 20_000 * 20
    assert ImageFiles(many).paths is many


NAMES = ["b.png", "sub folder/\u00e9.jpg", "a.png"]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        save_image(tmp_path / name, number)
    return tmp_path


def write(path, content, column="file_name"):
    """Write paths, a caption and a number per row in the format of the suffix."""
    if path.suffix == ".txt":
        path.write_text("\n\n".join(["\ufeff" + content[0], *content[1:]]) + "  \r\n", encoding="utf-8")
        return path
    table = pa.table({column: content, "caption": ["cat, asleep"] * len(content), "label": range(len(content))})
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        csv.write_csv(table, path, csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))
    return path


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.TSV".lower(), "list.parquet"])
def test_paths_are_read_in_their_order_relative_to_the_file(folder, monkeypatch, name):
    monkeypatch.setenv("HOME", str(folder))
    source = write(folder / name, [NAMES[0], str(folder / NAMES[1]), f"~/{NAMES[2]}"])
    paths = read_paths(f"~/{name}")
    assert paths == [folder / name for name in NAMES]
    assert [ImageFiles(paths)[index][0].getpixel((0, 0))[0] for index in (0, 2)] == [0, 2]
    if source.suffix != ".txt":
        assert read_paths(source, "file_name") == paths


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_must_exist_and_be_the_only_one_with_paths(folder, suffix):
    source = write(folder / f"list{suffix}", NAMES)
    rule = rf"`column` must be one of the columns 'file_name', 'caption', 'label' of {source}, got 'path'\. Pass"
    with pytest.raises(ValueError, match=rule):
        read_paths(source, "path")
    write(source, ["a", "b"])
    with pytest.raises(ValueError, match=r"One column of .* must contain paths of images, got none of 'file_name', 'c"):
        read_paths(source)
    table = {"image": NAMES, "mask": NAMES}
    parquet.write_table(pa.table(table), source) if suffix == ".parquet" else csv.write_csv(pa.table(table), source)
    with pytest.raises(ValueError, match=r"got 'image', 'mask'\. Pass `column`"):
        read_paths(source)
    assert read_paths(source, "mask") == [folder / name for name in NAMES]


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet"])
def test_missing_files_are_counted_and_the_first_are_named(folder, name):
    source = write(folder / name, ["b.png", *(f"{number}.png" for number in range(7))])
    listed = ", ".join(str(folder / f"{number}.png") for number in range(5))
    with pytest.raises(
        FileNotFoundError, match=rf"^Every file in {source} must exist, got 7 of 8 .*: {listed}, \.\.\."
    ):
        read_paths(source)
    with pytest.raises(FileNotFoundError):
        read_paths(folder / "none" / name)
    with pytest.raises(FileNotFoundError, match="got 1 of 1 that do not"):
        read_paths(write(folder / name, ["x" * 300 + ".png"]))


def test_a_list_must_have_a_known_suffix_a_header_and_content(folder):
    with pytest.raises(ValueError, match=r"must have one of the suffixes \.txt, \.csv, \.tsv, \.parquet, got .*\.json"):
        read_paths(folder / "list.json")
    (folder / "list.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"list\.txt must contain at least one path, got none"):
        read_paths(folder / "list.txt")
    with pytest.raises(ValueError, match=r"`column` must be None for a text file such as .*, got 'a'"):
        read_paths(folder / "list.txt", "a")
    (folder / "list.csv").write_text("b.png\na.png\n")
    with pytest.raises(ValueError, match=r"must begin with the names of its columns, got 'b\.png' in the first line"):
        read_paths(folder / "list.csv")
    (folder / "list.csv").write_text("")
    with pytest.raises(ValueError, match="must contain paths of images, got none of no columns"):
        read_paths(folder / "list.csv")
    (folder / "list.csv").write_text("path,label,path\nb.png,0,a.png\n")
    for column in (None, "path"):
        with pytest.raises(ValueError, match=r"One column of .*list\.csv must be named 'path', got 2\. Rename"):
            read_paths(folder / "list.csv", column)
    (folder / "list.csv").write_text("path,caption\n")
    with pytest.raises(ValueError, match=r"list\.csv must contain at least one path"):
        read_paths(folder / "list.csv", "path")


def test_damaged_lists_are_errors(folder):
    (folder / "list.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"list\.parquet must be a Parquet file, got "):
        read_paths(folder / "list.parquet")
    for name, content in (
        ("list.txt", b"\xff\xfe.png"),
        ("list.csv", b"path\n\xff.png\n"),
        ("list.csv", b'path\n"a.png'),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} must be a \.... file in UTF-8, got "):
            read_paths(folder / name)


def test_a_column_of_images_in_a_parquet_file_is_not_a_column_of_paths(folder):
    image = {"bytes": b"...", "path": "b.png"}
    parquet.write_table(pa.table({"image": [image]}), folder / "list.parquet")
    with pytest.raises(ValueError, match=r"must contain paths of images, got none of 'image'"):
        read_paths(folder / "list.parquet")
