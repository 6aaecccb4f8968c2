import json
import pickle
import zlib

import numpy as np
import pytest
import torch

from udmlss.search import SearchIndex, index, index_folder


def rows(n=600):
    return torch.randn(n // 20, 8).repeat_interleave(20, dim=0) + 0.5 * torch.randn(n, 8)


@pytest.mark.parametrize("exact_up_to", [0, 2**22])
@pytest.mark.parametrize("ids", [range(600), [f"ä/{number}.jpg" for number in range(600)]])
def test_a_loaded_index_finds_the_same_and_can_be_changed(tmp_path, monkeypatch, ids, exact_up_to):
    monkeypatch.setattr(index, "_EXACT", exact_up_to)
    built = SearchIndex(rows(), list(ids), target_recall=0.8)
    built.remove(list(ids)[:50])
    built.save(tmp_path / "new" / "saved")
    loaded = SearchIndex.load(tmp_path / "new" / "saved")
    assert repr(loaded) == repr(built)
    for each in (built, loaded):
        each.add(torch.eye(8)[:3], list(ids)[:3])
    queries = rows(100)
    assert [found.tolist() for found in loaded.search(queries)] == [found.tolist() for found in built.search(queries)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["saved"]


def test_without_faiss_a_loaded_index_is_exact(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(index, "_EXACT", 0)
    built = SearchIndex(rows())
    built.save(tmp_path / "saved")
    monkeypatch.setattr(index, "import_faiss", lambda: None)
    assert built.recall < SearchIndex.load(tmp_path / "saved").recall == 1


def test_an_index_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    SearchIndex(rows()).save(folder)
    SearchIndex(rows(40)).save(folder)
    assert len(SearchIndex.load(folder)) == 40

    def fail(*_, **__):
        raise OSError("no space left on device")

    for owner, name in ((np, "save"), (index_folder.Path, "write_text")):
        monkeypatch.setattr(owner, name, fail)
        with pytest.raises(OSError, match="no space left"):
            SearchIndex(rows(80)).save(folder)
        monkeypatch.undo()
    rename = index_folder.Path.rename
    monkeypatch.setattr(
        index_folder.Path, "rename", lambda path, to: fail() if path.suffix == ".part" else rename(path, to)
    )
    with pytest.raises(OSError, match="no space left"):
        SearchIndex(rows(80)).save(folder)
    monkeypatch.undo()
    assert len(SearchIndex.load(folder)) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_folders_and_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "photo.jpg").touch()
    for place in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(ValueError, match="`folder` must be new, empty, or the folder of an index, which is replac"):
            SearchIndex(rows(20)).save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    (tmp_path / "empty").mkdir()
    SearchIndex(rows(20)).save(tmp_path / "empty")


def test_other_files_in_the_folder_of_an_index_are_not_deleted(tmp_path):
    SearchIndex(rows(20)).save(tmp_path)
    (tmp_path / "photo.jpg").touch()
    (tmp_path / ".DS_Store").touch()  # of a file manager
    with pytest.raises(ValueError, match=r"`folder` must be new, empty, or the folder of an index.*photo\.jpg"):
        SearchIndex(rows(40)).save(tmp_path)
    (tmp_path / "photo.jpg").unlink()
    SearchIndex(rows(40)).save(tmp_path)
    assert len(SearchIndex.load(tmp_path)) == 40


def test_the_folder_behind_a_link_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "saved")
    for n in (20, 40):
        SearchIndex(rows(n)).save(tmp_path / "link")
        assert len(SearchIndex.load(tmp_path / "saved")) == n
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "saved"]


def without_a_file(folder):
    (folder / "ids.npy").unlink()


def with_a_file_of_another_index(folder):
    np.save(folder / "embeddings.npy", rows(40).numpy())


def with_a_pickle(folder):
    (folder / "ids.npy").write_bytes(pickle.dumps(list(range(40))))
    change(folder, lambda found: found["checksums"].update({"ids.npy": zlib.crc32((folder / "ids.npy").read_bytes())}))


def of_a_later_version(folder):
    change(folder, lambda found: found.update(version=2))


def of_another_program(folder):
    (folder / "index.json").write_text("[]")


def with_half_a_description(folder):
    (folder / "index.json").write_bytes((folder / "index.json").read_bytes()[:100])


def change(folder, function):
    found = json.loads((folder / "index.json").read_text())
    function(found)
    (folder / "index.json").write_text(json.dumps(found))


DAMAGED = {
    without_a_file: "`folder` must have the file ids.npy that `SearchIndex.save` wrote, got .* without it. Build the",
    with_a_file_of_another_index: "`folder` must have the file embeddings.npy .*, got .* so it is damaged or belongs",
    with_a_pickle: "`folder` must have the file ids.npy that .*, got .* contains pickled",
    of_a_later_version: "`folder` must be a folder that `SearchIndex.save` wrote, got format 'udmlss .*', version 2",
    of_another_program: "`folder` must be a folder that .*, whose index.json has another format",
    with_half_a_description: "`folder` must be a folder that `SearchIndex.save` wrote, got .*",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_or_foreign_folder_is_an_error(tmp_path, damage):
    SearchIndex(rows(40)).save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(ValueError, match=DAMAGED[damage]):
        SearchIndex.load(tmp_path / "saved")


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"`folder` must be a folder that `SearchIndex.save` .*No such file"):
        SearchIndex.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change", [{"checksums": []}, {"checksums": {}}, {"checksums": {"../ids.npy": 0}}, {"settings": {}}]
)
def test_a_description_with_wrong_entries_is_an_error(tmp_path, change):
    SearchIndex(rows(20)).save(tmp_path)
    found = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(found | change))
    with pytest.raises(ValueError, match="`folder` must be a folder that `SearchIndex"):
        SearchIndex.load(tmp_path)
