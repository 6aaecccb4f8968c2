import json

import pytest
import quality
import sweep
from settings import preset

from udmlss.training.optim import PRETRAINED_LR, SCRATCH_LR

pytestmark = pytest.mark.xdist_group("sweep")  # so that the runs of `out` are made once


@pytest.mark.parametrize(
    ("n_classes", "n_images", "possible", "impossible"),
    [
        (50, 2952, [25, 50, 100, 250, 500], []),
        (939, 12034, [470, 939, 1878], [4695, 9390]),
        (20, 1000, [20, 40, 100, 200], [10]),
    ],
)
def test_numbers_of_clusters_fit_the_images_and_the_batch(n_classes, n_images, possible, impossible):
    counts, notes = sweep.cluster_counts(n_classes, n_images, preset("cub100"))
    assert counts == possible
    assert [int(note.split()[2]) for note in notes] == impossible


@pytest.fixture(scope="module")
def out(flowers, options, tmp_path_factory):
    """A folder with runs of the frozen model, the upper bound and one method."""
    folder = tmp_path_factory.mktemp("results") / "flowers"
    given = ["--methods", "supervised,udml-ss", "--seeds", "2", "--no-searches", "--out", str(folder)]
    quality.main(["--data", str(flowers), *given, *options])
    return folder


def swept(out, flowers, options, over, seeds):
    before = {path: path.read_text() for path in out.glob("*.json")}
    sweep.main(["--data", str(flowers), "--over", over, "--seeds", seeds, "--out", str(out), *options])
    assert {path: path.read_text() for path in out.glob("*.json")} == before
    content = json.loads((out / over / "table.json").read_text())
    return content, (out / over / "table.md").read_text()


def test_sweep_over_rotation_uses_the_runs_of_the_table(out, flowers, options):
    content, text = swept(out, flowers, options, "rotation", "2")
    names = [row["name"] for row in content["rows"] if row["output"] == "features"]
    assert names == ["frozen", "0", "0.03", "0.1", "0.3", "1", "supervised"]
    assert {tuple(row["seeds"]) for row in content["rows"]} == {(0, 1)}
    assert "rotation_weight" not in content["settings"]
    assert not (out / "rotation" / "0.1").exists()
    found = json.loads((out / "rotation" / "0.3" / "udml-ss-1.json").read_text())
    assert found["settings"]["rotation_weight"] == 0.3
    assert "| rotation | output |" in text


def test_sweep_over_k_notes_impossible_numbers(out, flowers, options):
    content, text = swept(out, flowers, options, "k", "1")
    names = [row["name"] for row in content["rows"] if row["output"] == "features"]
    assert names == ["frozen", "2", "4", "8", "supervised"]
    assert "k = 20 is not possible: 24 images are fewer than 2 per cluster." in text
    assert "k = 40 is not possible" in text
    assert json.loads((out / "k" / "8" / "udml-ss-0.json").read_text())["history"][0]["n_clusters"] == 8


def test_sweep_over_loss_needs_no_other_runs(flowers, options, tmp_path, monkeypatch):
    monkeypatch.setitem(sweep.VALUES, "loss", ["multi-similarity", "circle"])
    given = ["--over", "loss", "--method", "udml", "--seeds", "1", "--out", str(tmp_path)]
    sweep.main(["--data", str(flowers), *given, *options])
    rows = json.loads((tmp_path / "loss" / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["output"] == "features"] == ["multi-similarity", "circle"]
    assert json.loads((tmp_path / "loss/circle/udml-0.json").read_text())["settings"]["loss"] == "circle"
    assert (tmp_path / "udml-0.json").exists()  # the run with the default loss belongs to the table


def test_sweep_over_steps_includes_the_steps_of_the_table(flowers, options, tmp_path):
    given = ["--over", "steps", "--method", "udml", "--seeds", "1", "--out", str(tmp_path)]
    sweep.main(["--data", str(flowers), *given, *options, "--steps", "5"])
    rows = json.loads((tmp_path / "steps" / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["output"] == "features"] == ["1", "2", "5", "10"]
    assert (tmp_path / "udml-0.json").exists()
    assert json.loads((tmp_path / "steps/10/udml-0.json").read_text())["history"][-1]["step"] == 10


def test_sweep_over_rate_changes_that_of_the_defaults(flowers, options, tmp_path):
    given = ["--over", "rate", "--method", "default", "--seeds", "1", "--out", str(tmp_path)]
    sweep.main(["--data", str(flowers), *given, *options])
    folders = (tmp_path, tmp_path / "rate/0.0001", tmp_path / "rate/0.0003")
    found = [json.loads((folder / "default-0.json").read_text()) for folder in folders]
    assert [run["settings"]["trunk_lr"] for run in found] == [3e-5, 1e-4, 3e-4]
    assert len({run["label_free"]["embeddings"]["effective_rank"] for run in found}) == 3


def test_the_presets_have_the_learning_rates_of_fit():
    assert [preset(data).trunk_lr for data in ("cub100", "glyphs")] == [PRETRAINED_LR, SCRATCH_LR]


@pytest.mark.parametrize("method", ["nca", "deepcluster", "cbswr"])
def test_rejects_methods_with_their_own_loss(flowers, options, tmp_path, capsys, method):
    with pytest.raises(SystemExit):
        sweep.main(["--data", str(flowers), "--over", "loss", "--method", method, "--out", str(tmp_path), *options])
    assert f"got {method}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
