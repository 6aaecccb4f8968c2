import json

import pytest
import quality
import sweep
from PIL import Image
from settings import preset


@pytest.mark.parametrize(
    ("n_classes", "n_images", "tried", "left_out"),
    [
        (50, 2952, [25, 50, 100, 250, 500], []),
        (939, 12034, [470, 939, 1878], [4695, 9390]),
        (20, 1000, [20, 40, 100, 200], [10]),
    ],
)
def test_k_goes_from_half_to_ten_times_the_classes_as_far_as_images_and_batch_allow(
    n_classes, n_images, tried, left_out
):
    counts, notes = sweep.cluster_counts(n_classes, n_images, preset("cub100"))
    assert counts == tried
    assert [int(note.split("k = ")[1].split(",")[0]) for note in notes] == left_out


@pytest.fixture(scope="module")
def out(flowers, options, tmp_path_factory):
    """A folder with the frozen model, the upper bound and one method."""
    folder = tmp_path_factory.mktemp("results") / "flowers"
    given = ["--methods", "supervised,udml-ss", "--seeds", "2", "--out", str(folder)]
    quality.main(["--data", str(flowers), *given, *options])
    return folder


def swept(out, flowers, options, over):
    before = {path: path.read_text() for path in out.glob("*.json")}
    sweep.main(["--data", str(flowers), "--over", over, "--seeds", "2", "--out", str(out), *options])
    assert {path: path.read_text() for path in out.glob("*.json")} == before
    content = json.loads((out / over / "table.json").read_text())
    with Image.open(out / over / "plot.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    return content, (out / over / "table.md").read_text()


def test_the_weights_make_a_table_and_a_plot_and_take_the_shared_runs_from_the_table_of_methods(out, flowers, options):
    content, text = swept(out, flowers, options, "rotation")
    names = [row["name"] for row in content["rows"] if row["scored"] == "features"]
    assert names == ["frozen", "0", "0.03", "0.1", "0.3", "1", "supervised"]
    assert {tuple(row["seeds"]) for row in content["rows"]} == {(0, 1)}
    assert "rotation_weight" not in content["settings"]
    assert not (out / "rotation" / "0.1").exists()
    found = json.loads((out / "rotation" / "0.3" / "udml-ss-1.json").read_text())
    assert found["settings"]["rotation_weight"] == 0.3
    assert "| rotation | scored |" in text


def test_the_clusters_make_a_table_that_says_what_was_left_out(out, flowers, options):
    content, text = swept(out, flowers, options, "k")
    names = [row["name"] for row in content["rows"] if row["scored"] == "features"]
    assert names == ["frozen", "2", "4", "8", "supervised"]
    assert "Left out: k = 20, for 24 images are fewer than 2 for each cluster." in text
    assert "Left out: k = 40" in text
    assert json.loads((out / "k" / "8" / "udml-ss-0.json").read_text())["history"][0]["n_clusters"] == 8


def test_a_sweep_needs_no_other_runs(flowers, options, tmp_path):
    given = ["--over", "k", "--method", "udml", "--seeds", "1", "--out", str(tmp_path)]
    sweep.main(["--data", str(flowers), *given, *options])
    rows = json.loads((tmp_path / "k" / "table.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"2", "4", "8"}
    assert {row["closed"] for row in rows} == {None}


def test_the_losses_make_a_table(flowers, options, tmp_path):
    given = ["--over", "loss", "--method", "udml", "--seeds", "1", "--out", str(tmp_path)]
    sweep.main(["--data", str(flowers), *given, *options])
    rows = json.loads((tmp_path / "loss" / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["scored"] == "features"] == list(sweep.LOSSES)
    assert json.loads((tmp_path / "loss/circle/udml-0.json").read_text())["settings"]["loss"] == "circle"
    assert (tmp_path / "udml-0.json").exists()  # the standard loss is the table's own run


@pytest.mark.parametrize("method", ["nca", "deepcluster", "cbswr"])
def test_no_losses_are_tried_with_a_method_that_has_its_own(flowers, options, tmp_path, capsys, method):
    with pytest.raises(SystemExit):
        sweep.main(["--data", str(flowers), "--over", "loss", "--method", method, "--out", str(tmp_path), *options])
    assert f"{method} has its own" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("over", ["whitening", "left-out"])
def test_a_part_of_the_recipe_is_tried_beside_the_table_without_it(flowers, options, tmp_path, monkeypatch, over):
    ran = []
    monkeypatch.setattr(sweep, "ensure", lambda folder, _method, _seed, settings, _data: ran.append((folder, settings)))
    monkeypatch.setattr(sweep, "write", lambda *_, **__: [])
    monkeypatch.setattr(sweep, "save_sweep", lambda *_, **__: None)
    sweep.main(["--data", str(flowers), "--over", over, "--seeds", "1", "--out", str(tmp_path), *options])
    without, part = sweep.VALUES[over]
    assert [folder for folder, _ in ran] == [tmp_path, tmp_path / over / f"{part:g}"]
    assert [getattr(settings, sweep.FIELDS[over]) for _, settings in ran] == [without, part]


def test_leaving_out_some_of_each_cluster_trains(flowers, options, tmp_path):
    given = ["--methods", "udml", "--seeds", "1", "--out", str(tmp_path), *options, "--leave-out", "0.3"]
    quality.main(["--data", str(flowers), *given])
    assert all(report["n_unassigned"] > 0 for report in json.loads((tmp_path / "udml-0.json").read_text())["history"])
