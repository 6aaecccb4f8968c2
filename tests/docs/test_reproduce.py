"""Every published method trains by examples/reproduce.py, on a small folder and for few steps."""

import sys
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # the examples import each other
import published
import reproduce

from udmlss import Epochs

TINY = """
    --backbone small --image-size 16 --embedding-size 8 --n-clusters 6 --clusters-per-batch 2 --rotation-images 4
    --n-neighbors 5 --batch 6 --max-steps 2
"""
SIZES = {"cub200": 5864, "cars196": 8054, "sop": 59551, "inshop": 25882, "folder": 1000, "glyphs": 12034}


def arguments(method, root, *options, data="folder"):
    return ["--method", method, "--data", data, "--root", str(root), *TINY.split(), *options]


def run(*given, **chosen):
    reproduce.main(arguments(*given, **chosen))


def rows(printed):
    return {line.split()[0]: line for line in printed.splitlines() if "R@" in line}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder per class: 4 classes of 6 images, each class with a color."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name in "abcd":
        (root / name).mkdir()
        color = torch.rand(3, 1, 1, generator=generator)
        for number in range(6):
            pixels = (color * 200 + torch.rand(3, 20, 24, generator=generator) * 55).byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("method", published.METHODS)
def test_method_prints_its_settings_trains_and_scores(method, pictures, capsys, monkeypatch):
    built = []
    whole = reproduce.build_model
    monkeypatch.setattr(reproduce, "build_model", lambda *given: built.append(whole(*given)) or built[-1])
    run(method, pictures)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{method} on folder, 12 training images\n  ")
    assert list(rows(printed)) == ["features", "embeddings"]
    assert "R@8" in printed
    model, _ = built[0]
    untrained, _ = whole(*reproduce.parse(arguments(method, pictures)))
    same = map(torch.equal, untrained.embedder.parameters(), model.embedder.parameters())
    assert all(same) == (method == "frozen")


@pytest.mark.parametrize("data", SIZES)
def test_settings_of_every_method_fit_the_dataset(data):
    for method in published.METHODS:
        found = published.settings_for(method, data)
        assert found.loss in published.LOSSES
        assert found.schedule in published.SCHEDULES
        assert reproduce.shorten(found, SIZES[data], None).steps >= 300
        assert reproduce.shorten(found, SIZES[data], 7).steps == 7
        if found.kind == "clusters":
            assert found.clusters_per_batch <= found.n_clusters < SIZES[data]
        if found.kind == "cbswr":
            assert found.n_clusters <= found.batch
        assert found.clusters_per_batch * found.samples_per_cluster * found.views in {64, 80, 128, 150, 240, 256}


def test_settings_of_udml_ss_are_those_of_the_released_script():
    found = published.settings_for("udml-ss", "cub200")
    assert (found.backbone, found.image_size, found.embedding_size) == ("googlenet", 227, 512)
    assert found.crop_scale == (0.16, 1)
    assert (found.n_clusters, found.clusters_per_batch, found.samples_per_cluster) == (100, 16, 5)
    assert (found.steps, found.relabel_every, found.rotation_weight, found.rotation_images) == (3600, 30, 0.1, 16)
    assert (found.optimizer, found.lr, found.new_lr, found.weight_decay) == ("adam", 1e-5, 1e-5, 5e-4)
    on_sop = published.settings_for("udml-ss", "sop")
    assert (on_sop.n_clusters, on_sop.clusters_per_batch, on_sop.steps) == (10_000, 48, 62_400)
    assert published.settings_for("udml-ss", "cars196").steps == 12_000


def test_settings_that_differ_between_datasets_are_published():
    assert published.settings_for("cbswr", "cub200").neighbor_fraction == 0.5
    assert published.settings_for("cbswr", "cars196").neighbor_fraction == 0
    stml = published.settings_for("stml", "sop")
    assert (stml.ema_decay, stml.delta, stml.neighbors) == (0.9, 0.9, 2)
    synthesis = published.settings_for("synthesis", "sop")
    assert (synthesis.n_clusters, synthesis.clusters_per_batch, synthesis.steps) == (10_000, 30, Epochs(60))
    assert published.settings_for("recipe", "sop").clusters_per_batch == 24
    memory = published.settings_for("cluster-contrast", "sop")
    assert (memory.clusters_per_batch, memory.steps, memory.relabel_every) == (16, 10_000, 200)


def test_shorten_converts_epochs_by_the_images_of_a_batch():
    assert reproduce.shorten(published.settings_for("stml", "cub200"), 1200, None).steps == 900
    assert reproduce.shorten(published.settings_for("synthesis", "cub200"), 1500, None).steps == 600


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.75, 0.5, 0.25]),
        ("x 0.1 every third", [1, 0.1, 0.1, 0.01]),
        ("x 0.1 every 2/5", [1, 1, 0.1, 0.1]),
        ("x 0.5 every sixth", [1, 0.25, 0.125, 0.0625]),
    ],
)
def test_schedule_returns_the_factor_of_the_learning_rates(schedule, factors):
    found = [published.SCHEDULES[schedule](fraction) for fraction in (0, 1 / 3, 1 / 2, 2 / 3)]
    assert found == pytest.approx(factors)


def test_option_changes_its_setting_and_unused_settings_are_not_printed(pictures, capsys):
    run("instance", pictures, "--lr", "0.5", "--pooling", "average", "--crop-scale", "0.3", "0.9")
    printed = capsys.readouterr().out
    assert "  lr                  0.5\n" in printed
    assert "  crop_scale          [0.3, 0.9]\n" in printed
    assert "relabel_every" not in printed
    assert "neighbor_fraction   0.5" in printed


def test_inshop_scores_queries_against_the_gallery(tmp_path, capsys, monkeypatch):
    parts = [(f"id_{item}", "train") for item in range(6) for _ in range(3)]
    parts += [(f"id_{item}", part) for item in range(10, 16) for part in ("query", "gallery", "gallery")]
    seen = []
    whole = reproduce.evaluate
    monkeypatch.setattr(
        reproduce, "evaluate", lambda *given, **chosen: seen.append((given, chosen)) or whole(*given, **chosen)
    )
    monkeypatch.setitem(reproduce.KS, "inshop", (1, 10))
    run("udml", layouts.inshop(tmp_path, parts), data="inshop")
    assert list(rows(capsys.readouterr().out)) == ["features", "embeddings"]
    (_, gallery, _), chosen = seen[0]
    assert (len(gallery), len(chosen["queries"])) == (12, 6)


@pytest.mark.parametrize(("data", "ks"), [("cub200", "R@8"), ("cars196", "R@8"), ("sop", "R@10")])
def test_published_dataset_trains(tmp_path, capsys, monkeypatch, data, ks):
    class_of = [key for key in range(1, 9) for _ in range(3)]
    given = {
        "cub200": {"class_of": class_of},
        "cars196": {"class_of": class_of, "names": tuple("abcdefgh")},
        "sop": {"train": class_of, "test": [key + 8 for key in class_of]},
    }
    monkeypatch.setitem(reproduce.KS, "sop", (1, 10))
    run("udml", getattr(layouts, data)(tmp_path, **given[data]), data=data)
    assert ks in rows(capsys.readouterr().out)["embeddings"]


def test_glyphs_need_no_root(capsys, monkeypatch):
    few = reproduce.glyphs("train")
    first = replace(few, images=few.images[:64], labels=few.labels[:64], face_of=few.face_of[:64])
    monkeypatch.setattr(reproduce, "glyphs", lambda _split, transform=None: replace(first, transform=transform))
    given = ["--n-clusters", "16", "--max-steps", "1"]
    reproduce.main(["--method", "udml-ss", "--data", "glyphs", *given])
    assert list(rows(capsys.readouterr().out)) == ["features", "embeddings"]


def test_pretrained_network_trains_with_another_pooling_and_frozen_batch_norm(pictures, capsys):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone is part of udmlss[demo]")
    run("cbswr", pictures, "--backbone", "efficientnet-lite0", "--image-size", "48", "--pooling", "maximum")
    assert "freeze_batch_norm   True" in capsys.readouterr().out


def test_data_can_be_the_path_of_a_folder(pictures):
    args, settings = reproduce.parse(["--method", "udml", "--data", str(pictures)])
    assert (args.data, args.root) == ("folder", pictures)
    assert settings == published.settings_for("udml", "cub200")


def test_rejects_a_batch_of_more_images_than_the_dataset_has(pictures):
    with pytest.raises(ValueError, match=r"`batch` must lie in 2\.\.12, the number of images, got 13"):
        run("stml", pictures, "--batch", "13")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "udml-sss", "--data", "folder"], "invalid choice: 'udml-sss'"),
        (["--method", "udml", "--data", "cub"], "or an existing folder, got cub"),
        (["--method", "udml", "--data", "sop"], "--data sop needs --root"),
        (["--method", "udml", "--data", "glyphs", "--max-steps", "0"], "at least 1, got 0"),
        (["--method", "udml", "--data", "glyphs", "--backbone", "resnet50"], "remove --backbone and --image-size"),
        (
            ["--method", "udml", "--data", "folder", "--root", ".", "--backbone", "small", "--pooling", "maximum"],
            "remove --pooling",
        ),
    ],
)
def test_invalid_options_end_the_program_with_a_message(options, message, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse(options)
    assert message in capsys.readouterr().err
