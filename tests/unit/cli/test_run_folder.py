"""The folder of a run: whose it is, and that its files are complete."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from udmlss import PseudoLabels
from udmlss.cli import embed, export, outputs
from udmlss.cli.run_folder import RunFolder
from udmlss.neighbors import neighbor_lists

SETTINGS = {"images": "/photos", "epochs": 4, "clusters": None}


def claim(folder, **changes):
    with RunFolder(folder).claim(SETTINGS | changes):
        pass


def test_a_folder_belongs_to_one_run_and_the_error_names_what_differs(tmp_path):
    folder = tmp_path / "new" / "run"
    claim(folder, epochs=1)
    claim(folder)  # nothing was trained yet
    RunFolder(folder).checkpoints.mkdir()
    (RunFolder(folder).checkpoints / "step-000000001.pt").touch()
    claim(folder)
    with pytest.raises(ValueError, match=r"got images: /photos before and /other now; epochs: 4 before and 2 now\."):
        claim(folder, images="/other", epochs=2)


def test_a_folder_with_other_files_and_a_file_are_errors_and_stay_as_they_are(tmp_path):
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match=r"`out` must be a new folder, .*thesis.txt"):
        claim(tmp_path)
    with pytest.raises(ValueError, match="`out` must be a folder, got the file"):
        claim(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_files_that_a_killed_process_left_are_removed(tmp_path):
    claim(tmp_path / "run")
    (tmp_path / "run" / "embeddings.1234.npy.part").touch()
    (tmp_path / "run" / "model.1234.previous").mkdir()
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir()
    claim(run.folder)
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "checkpoints", "run.json"]
    run._write(run._read() | {"summary": {}})  # the process was killed before the checkpoints were removed
    claim(run.folder)
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "run.json"]


def send_claim(sender, folder):
    try:
        claim(folder)
        sender.send("claimed")
    except ValueError as error:
        sender.send(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, with threads
def test_another_process_cannot_use_the_folder_at_the_same_time(tmp_path):
    processes = multiprocessing.get_context("fork")

    def other_process():
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=send_claim, args=(sender, tmp_path / "run"))
        process.start()
        process.join()
        return receiver.recv()

    with RunFolder(tmp_path / "run").claim(SETTINGS):
        assert "which another process uses" in other_process()
    assert other_process() == "claimed"


def test_a_run_that_is_not_finished_or_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"`run` must be the folder of a run, got .*no such folder"):
        RunFolder.finished(tmp_path / "none")
    with pytest.raises(ValueError, match=r"a folder without run\.json"):
        RunFolder.finished(tmp_path)
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match="`run` must be a finished run"):
        RunFolder.finished(tmp_path / "run")


def test_hidden_files_and_an_unfinished_run_json_are_no_other_files(tmp_path):
    for name in (".DS_Store", "run.json.1234.part"):
        (tmp_path / name).touch()
    claim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".DS_Store", ".lock", "run.json"]


def test_a_broken_link_is_an_error_that_names_it(tmp_path):
    (tmp_path / "run").symlink_to("missing")
    with pytest.raises(ValueError, match=r"`out` must be a folder, got the broken link .*run"):
        claim(tmp_path / "run")


def test_run_json_of_another_program_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "another program"}')
    assert not RunFolder(tmp_path).has_run_files
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000001.pt").touch()
    assert RunFolder(tmp_path).has_run_files


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 99})])
def test_a_damaged_or_newer_description_is_an_error(tmp_path, content):
    claim(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json|format"):
        claim(tmp_path / "run")


@pytest.mark.parametrize("reliability", [None, torch.linspace(-0.5, 0.5, 6)])
def test_images_are_read_as_they_were_written(tmp_path, reliability):
    run, labels = RunFolder(tmp_path), torch.tensor([0, 0, 1, 1, -1, 1])
    pseudo_labels = PseudoLabels(labels, None, torch.tensor([2, 3]), reliability=reliability)
    paths = [Path(f"/photos/{name}.jpg") for name in "abcdeé"]
    run.write_images(paths, pseudo_labels, neighbor_lists(torch.randn(6, 4), 3))
    assert run.read_paths() == paths
    found = run.read_pseudo_labels()
    assert torch.equal(found.labels, labels)
    assert (found.reliability is None) == (reliability is None)
    assert reliability is None or torch.equal(found.reliability, reliability)


def test_neighbors_are_paths_with_descending_similarities(tmp_path):
    from pyarrow import parquet  # noqa: PLC0415 (takes long to import)

    run, rows = RunFolder(tmp_path), torch.nn.functional.normalize(torch.randn(6, 4))
    paths = [Path(f"/photos/{number}.jpg") for number in range(6)]
    run.write_images(paths, PseudoLabels.from_labels([0, 0, 0, 1, 1, 1]), neighbor_lists(rows, 5))
    similarities = rows @ rows.T
    for number, row in enumerate(parquet.read_table(run.images).to_pylist()):
        order = [int(Path(path).stem) for path in row["neighbors"]]
        assert set(order) == set(range(6)) - {number}
        assert row["similarities"] == sorted(row["similarities"], reverse=True)
        assert torch.tensor(row["similarities"]).allclose(similarities[number, order], atol=1e-5)


def test_the_list_of_images_is_not_overwritten(tmp_path):
    paths = tmp_path / "photos.txt"
    paths.touch()
    with pytest.raises(ValueError, match="`out` must have another name than the list of images"):
        embed("run", paths, out=tmp_path / "photos.npy")


def test_a_text_file_that_is_not_of_the_embeddings_is_not_overwritten(tmp_path):
    (tmp_path / "photos.txt").write_text("notes")
    with pytest.raises(ValueError, match=r"`out` must not have the name of another text file, got .*photos\.txt"):
        embed("run", tmp_path, out=tmp_path / "photos.npy")
    assert (tmp_path / "photos.txt").read_text() == "notes"


@pytest.mark.parametrize("name", ["a\nb.png", "a /b.png", "c.png "])
def test_a_path_that_is_not_a_line_of_a_text_file_is_an_error(tmp_path, monkeypatch, name):
    monkeypatch.setattr(outputs, "open_images", lambda *_, **__: [Path("/photos", name)])
    monkeypatch.setattr(outputs, "open_model", lambda _: (None, None))
    monkeypatch.setattr(outputs, "embed_paths", lambda *_, **__: None)
    if name == "a /b.png":  # a folder may end in a blank
        assert embed("run", "photos", out=tmp_path / "photos.npy") == tmp_path / "photos.npy"
        return
    with pytest.raises(ValueError, match="A path in a text file must not contain line breaks or end in a blank"):
        embed("run", "photos", out=tmp_path / "photos.npy")


def test_a_model_of_an_unfinished_run_is_an_error_that_names_the_remedy(tmp_path):
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match=r"`run` must be a finished run, got .*Run the same `udmlss train` again"):
        export(tmp_path / "run", tmp_path / "model.onnx")


def test_a_missing_folder_of_a_model_is_an_error_before_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "open_images", None)
    with pytest.raises(ValueError, match=r"folder of a run.*runn, which is not a folder.*udmlss train"):
        embed(tmp_path / "runn", tmp_path, out=tmp_path / "photos.npy")
