"""The command on a folder of small images, from training to the export."""

import json
import os
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pyarrow import parquet

from udmlss import cli
from udmlss.cli import training
from udmlss.training import CSVLogger

pytestmark = pytest.mark.xdist_group("backbones")  # which one process then imports
TRAIN = ["train", "photos", "--epochs", 2, "--image-size", 32, "--images-per-cluster", 10, "--workers", 0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with `photos`: 6 folders of 10 noisy images of one color, and a copy of one of them."""
    root, generator = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    for group, color in enumerate(generator.integers(0, 200, (6, 1, 1, 3))):
        folder = root / "photos" / f"group {group}"
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = color + generator.integers(0, 56, (36, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (root / "photos" / "copy.png").write_bytes((root / "photos" / "group 0" / "0.png").read_bytes())
    return root


@pytest.fixture
def run(photos, monkeypatch, capsys):
    """Return a function that runs the command and returns its exit code and what it printed."""
    monkeypatch.chdir(photos)

    def run_command(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code = cli.main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture(scope="module")
def trained(photos):
    """The folder after a training into `run`, and what the training printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos)
        settings = {"image_size": np.int64(32), "images_per_cluster": np.int64(10), "seed": np.int64(0)}
        return photos, str(cli.train("photos", out="run", epochs=2, workers=0, **settings))


def test_a_run_holds_its_files_and_nothing_else(trained):
    folder, text = trained
    expected = "embeddings-before.npy embeddings.npy history.csv images.parquet model report.html run.json steps.csv"
    assert sorted(path.name for path in (folder / "run").iterdir()) == [".lock", *expected.split()]
    assert sorted(path.name for path in folder.iterdir()) == ["photos", "run"]
    embeddings, images = np.load(folder / "run/embeddings.npy"), parquet.read_table(folder / "run/images.parquet")
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert len(embeddings) == images.num_rows == 61
    assert images.column_names == ["path", "cluster", "reliability", "neighbors", "similarities"]
    assert "Label-free score: " in text
    assert "The model has the weights of " in text
    assert "run/report.html " in text


def test_the_same_command_again_prints_the_result_and_another_setting_is_an_error(trained, run):
    code, out, err = run(*TRAIN, "--out", "run")
    assert (code, out) == (0, f"{trained[1]}\n")
    assert "The run in run is finished" in err
    state = json.loads((trained[0] / "run/run.json").read_text())
    del state["settings"]["ignore_orientation"]  # of an earlier version
    (trained[0] / "run/run.json").write_text(json.dumps(state))
    assert run(*TRAIN, "--out", "run")[0] == 0
    code, out, err = run(*TRAIN, "--out", "run", "--seed", 1)
    assert (code, out) == (2, "")
    assert "seed: 0 before and 1 now" in err


def press_ctrl_c(*_):
    raise KeyboardInterrupt


def test_an_interrupted_run_is_continued_to_the_same_result(trained, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CSVLogger, "on_round", press_ctrl_c)
        code, out, err = run(*TRAIN, "--out", "resumed")
    assert (code, out) == (130, "")
    assert err.endswith("udmlss: interrupted: Run the same command again to continue\n")
    assert "neighbors in common with colors, and" in err
    code, _, err = run(*TRAIN, "--out", "resumed")
    assert code == 0
    assert "resumes from" in err
    assert " in all; Ctrl-C" in err
    assert "neighbors in common with colors, and" not in err  # the choice was stored
    for name in ("embeddings.npy", "embeddings-before.npy", "images.parquet"):
        assert (trained[0] / "resumed" / name).read_bytes() == (trained[0] / "run" / name).read_bytes()


@pytest.fixture(scope="module")
def drawings(photos):
    """A folder of 6 drawings in 12 random pairs of colors each."""
    generator = np.random.default_rng(0)
    (photos / "drawings").mkdir()
    for number, drawing in enumerate(generator.integers(0, 2, (6, 4, 4, 1)).repeat(12, axis=0)):
        ink, paper = generator.integers(0, 256, (2, 3))
        pixels = np.where(drawing, ink, paper).repeat(10, axis=0).repeat(10, axis=1)
        Image.fromarray(pixels.astype(np.uint8)).save(photos / "drawings" / f"{number}.png")
    yield
    shutil.rmtree(photos / "drawings")


@pytest.mark.usefixtures("drawings")
def test_colors_and_orientation_are_ignored_if_the_images_suggest_it_or_the_user_asks_for_it(photos, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CSVLogger, "on_round", press_ctrl_c)
        code, _, err = run("train", "drawings", *TRAIN[2:], "--out", "found")
    assert code == 130
    assert "Colors are ignored: an image and its nearest neighbors have" in err
    outputs = {}
    for name, options in {"found": [], "ignored": ["--ignore-colors"], "kept": ["--no-ignore-colors"]}.items():
        code, out, err = run("train", "drawings", *TRAIN[2:], "--out", name, *options)
        assert code == 0
        assert ("The embeddings ignore the colors" in out) == (name != "kept")
        assert "Colors are ignored" not in err  # the choice is that of the user or of the interrupted run
        config = json.loads((photos / name / "model/config.json").read_text())
        recipe = config["recipe"]
        assert recipe["ignore_colors"] == config["backbone"]["ignores_colors"] == (name != "kept")
        outputs[name] = [np.load(photos / name / f"embeddings{when}.npy") for when in ("-before", "")]
    for found, ignored, kept in zip(*outputs.values(), strict=True):  # before and after training
        np.testing.assert_array_equal(found, ignored)
        assert np.abs(found - kept).max() > 0.01
    code, out, _ = run("train", "drawings", *TRAIN[2:], "--out", "rotated", "--ignore-colors", "--ignore-orientation")
    assert code == 0
    assert "The embeddings ignore the colors and the orientation of the images." in out
    negative = ImageOps.invert(Image.open(photos / "drawings/0.png"))
    negative.save(photos / "negative.png")
    _, out, _ = run("search", "found", "negative.png", "--k", 1)
    assert out.split()[1:] == ["1.000", "drawings/0.png"]
    negative.rotate(90).save(photos / "negative.png")
    found = {name: run("search", name, "negative.png", "--k", 1)[1].split()[1:] for name in ("found", "rotated")}
    assert found["rotated"] == ["1.000", "drawings/0.png"] != found["found"]
    for name in (*outputs, "rotated", "negative.png"):
        path = photos / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_an_image_of_the_run_finds_its_copy_first_and_not_itself(trained, run):
    image = "photos/group 0/0.png"
    code, out, _ = run("search", "run", image, "photos/group 1/1.png", "--k", 3, "--report", "found.html")
    first, second = out.split("\n\n")
    assert code == 0
    assert first.splitlines()[:2] == [image, " 1.000  photos/copy.png"]
    assert len(first.splitlines()) == len(second.splitlines()) == 4
    assert image not in first.splitlines()[1:]
    page = (trained[0] / "found.html").read_text()
    assert page.count("<img ") == 8
    assert "1.000 photos/copy.png" in page
    code, out, err = run("search", "run", "none.png")
    assert (code, out) == (2, "")
    assert "Each of IMAGE must be an image file, got none.png, which does not exist" in err


def test_an_image_of_the_run_does_not_find_itself_by_another_path(trained, run):
    (trained[0] / "link.png").symlink_to("photos/group 0/0.png")
    (trained[0] / "hard.png").hardlink_to(trained[0] / "photos/group 0/0.png")
    for image in ("photos/group 1/../group 0/0.png", "link.png", "hard.png"):
        code, out, _ = run("search", "run", image, "--k", 60)
        found = [line.split("  ")[1] for line in out.splitlines()[1:]]
        assert (code, len(found), found[0]) == (0, 60, "photos/copy.png")
        assert "photos/group 0/0.png" not in found
    (trained[0] / "link.png").unlink()
    (trained[0] / "hard.png").unlink()


def test_an_image_that_is_in_the_run_under_several_paths_does_not_reduce_the_number_found(trained, run):
    original, links = trained[0] / "photos/group 0/0.png", [trained[0] / f"photos/group 1/{n}.png" for n in range(2)]
    contents = [link.read_bytes() for link in links]
    for link in links:
        link.unlink()
        link.symlink_to(original)
    try:
        embeddings = np.load(trained[0] / "run" / "embeddings.npy")
        paths = parquet.read_table(trained[0] / "run" / "images.parquet").column("path").to_pylist()
        rows = [paths.index(str(path)) for path in (original, *links)]
        changed = embeddings.copy()
        changed[rows] = embeddings[rows[0]]
        np.save(trained[0] / "run" / "embeddings.npy", changed)
        found = cli.search("run", original, k=3)[0]
    finally:
        np.save(trained[0] / "run" / "embeddings.npy", embeddings)
        for link, content in zip(links, contents, strict=True):
            link.unlink()
            link.write_bytes(content)
    assert len(found.paths) == 3
    assert not {original, *links} & {*found.paths}


def test_a_picture_is_not_replaced_by_a_page(trained, run):
    image = trained[0] / "photos" / "copy.png"
    before = image.read_bytes()
    code, _, err = run("search", "run", "photos/group 0/0.png", "--report", image)
    assert (code, image.read_bytes()) == (2, before)
    assert "--report must be a file with the suffix .html" in err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_a_name_that_is_not_unicode_is_found_or_is_an_error_that_names_it(trained, run):
    name = os.fsdecode(b"\xff.png")
    odd = trained[0] / "odd" / name
    odd.parent.mkdir()
    odd.write_bytes((trained[0] / "photos" / "copy.png").read_bytes())
    code, out, _ = run("search", "run", odd, "--k", 2, "--report", "odd.html")
    assert (code, out.splitlines()[0]) == (0, "odd/\\udcff.png")
    assert "copy.png" in (trained[0] / "odd.html").read_text()
    before = sorted(trained[0].rglob("*"))
    for arguments in (
        ["train", "odd", "--out", "failed"],
        [*TRAIN, "--out", name],
        ["embed", "run", "odd", "--out", "failed.npy"],
        ["duplicates", "run", "--other", "odd"],
        ["check", "odd"],
        ["export", "run", name],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "udcff.png" in err
        assert err.splitlines()[-1].startswith("udmlss: error: ")
    assert sorted(trained[0].rglob("*")) == before


def test_moved_images_are_named_on_the_page_of_a_search_and_skipped_by_a_comparison_of_runs(trained, run):
    image, moved = trained[0] / "photos/copy.png", trained[0] / "moved.png"
    image.rename(moved)
    try:
        code, _, err = run("search", "run", "photos/group 0/0.png", "--report", "found.html")
        assert (code, (trained[0] / "found.html").is_file()) == (0, True)
        assert "1 image on the page cannot be read, and a gray placeholder is shown instead" in err
        options = ["--threshold", 0.99999, "--workers", 0, "--no-progress"]
        code, _, err = run("duplicates", "run", "--other", "run", *options)
        assert (code, "Pass --skip-unreadable to skip such files." in err) == (1, True)
        code, out, _ = run("duplicates", "run", "--other", "run", *options, "--skip-unreadable")
        assert (code, "copy.png\nphotos/copy.png" in out) == (0, False)
    finally:
        moved.rename(image)


def test_near_duplicates_are_found_in_the_run_and_in_other_images(trained, run):
    code, out, _ = run("duplicates", "run", "--threshold", 0.99999)
    assert (code, out) == (0, "photos/copy.png\nphotos/group 0/0.png\n")
    (trained[0] / "list.txt").write_text("photos/group 2/5.png\n")
    code, out, _ = run("duplicates", "run", "--other", "list.txt", "--threshold", 0.99999, "--workers", 0)
    assert (code, out) == (0, "photos/group 2/5.png\nphotos/group 2/5.png\n")
    (trained[0] / "other").mkdir()
    (trained[0] / "other" / "run.json").write_text("[]")  # the file of another program
    (trained[0] / "other" / "a.png").write_bytes((trained[0] / "photos" / "group 2" / "5.png").read_bytes())
    (trained[0] / "other" / "b.png").write_bytes(b"no image")
    options = ["--threshold", 0.99999, "--workers", 0, "--no-progress"]
    code, out, err = run("duplicates", "run", "--other", "other", *options)
    assert (code, out) == (1, "")
    assert "Pass --skip-unreadable to skip such files." in err
    code, out, _ = run("duplicates", "run", "--other", "other", *options, "--skip-unreadable")
    assert (code, out) == (0, "photos/group 2/5.png\nother/a.png\n")
    pairs = cli.duplicates("run", other="run", workers=0, threshold=0.99999)
    assert len(pairs) == 61
    assert all(one == other for one, other in pairs if "copy" not in other.name and other.name != "0.png")


def test_the_saved_model_embeds_as_the_run_did_and_is_exported(trained, run):
    code, out, _ = run("embed", "run", "photos", "--out", "new/all.npy", "--workers", 0)
    assert (code, out) == (0, "new/all.npy\n")
    expected = torch.from_numpy(np.load(trained[0] / "run" / "embeddings.npy"))
    torch.testing.assert_close(torch.from_numpy(np.load(trained[0] / "new/all.npy")), expected, rtol=0, atol=1e-4)
    paths = parquet.read_table(trained[0] / "run" / "images.parquet").column("path").to_pylist()
    assert (trained[0] / "new/all.txt").read_text().splitlines() == paths
    code, out, _ = run("export", "run", "model.onnx")
    assert (code, out) == (0, "model.onnx\n")
    assert (trained[0] / "model.onnx").stat().st_size > 1_000_000


def test_the_report_is_written_again(trained, run):
    (trained[0] / "run" / "report.html").unlink()
    assert run("report", "run")[:2] == (0, "run/report.html\n")
    text = (trained[0] / "run" / "report.html").read_text()
    assert "Label-free score" in text
    (trained[0] / "photos").rename(trained[0] / "moved")
    code, out, err = run("report", "run")
    (trained[0] / "moved").rename(trained[0] / "photos")
    assert (code, out) == (1, "")
    assert "The images of the run must exist, got none of 61 images" in err
    assert (trained[0] / "run" / "report.html").read_text() == text


def test_a_run_is_complete_without_the_packages_of_the_report(photos, run, monkeypatch):
    def fail(_run):
        raise ImportError('Install it: pip install "udmlss[report]"')

    monkeypatch.setattr(training, "report", fail)
    code, out, err = run("train", photos / "photos", "--out", "no-report", *TRAIN[2:])
    assert code == 0
    assert "report.html" not in out
    assert 'udmlss: warning: The report is missing: Install it: pip install "udmlss[report]"' in err


def test_a_wrong_output_folder_is_found_before_the_images_are_read(photos, run, monkeypatch):
    monkeypatch.setattr(training, "open_images", None)
    code, _, err = run("train", "photos", "--out", "photos")
    assert code == 2
    assert "--out must be a new folder" in err


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["photos/copy.png"], 2, "Pass the folder that contains the images"),
        (["empty"], 2, "must contain images"),
        (["photos", "--clusters", 62], 2, "62"),
        (["photos", "--images-per-cluster", 40], 2, "at most half"),
        (
            ["photos", "--clusters", 5, "--images-per-cluster", 5],
            2,
            "At most one of --clusters and",
        ),
        (["photos", "--backbone", "efficientnet-lite9"], 2, "--backbone must be the name of a backbone"),
        (["photos", "--device", "toaster"], 2, "--device"),
        (["broken"], 1, "--skip-unreadable"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_files(arguments, code, part, photos, run):
    (photos / "empty").mkdir(exist_ok=True)
    (photos / "broken").mkdir(exist_ok=True)
    for number in range(9):
        (photos / "broken" / f"{number}.png").write_bytes(b"no image")
    found, out, err = run("train", *arguments, "--out", "failed", "--image-size", 32, "--no-progress", "--workers", 0)
    assert (found, out) == (code, "")
    assert err.startswith("udmlss: error: ")
    assert err.count("\n") == 1
    assert part in err
    left = sorted(path.name for path in (photos / "failed").iterdir()) if (photos / "failed").exists() else []
    assert left in ([], [".lock", "run.json"])
