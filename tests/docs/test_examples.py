import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


def run(program, *arguments, cwd, launcher=()):
    environment = {**os.environ, "PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / program), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def birds(tmp_path_factory):
    """A made folder in CUB's layout: 8 classes, told apart by colour, of 8 pictures."""
    root = tmp_path_factory.mktemp("birds") / "CUB_200_2011"
    lists = {"classes.txt": [], "images.txt": [], "image_class_labels.txt": []}
    draws = torch.Generator().manual_seed(0)
    for number in range(1, 9):
        name = f"{number:03}.Bird"
        (root / "images" / name).mkdir(parents=True)
        lists["classes.txt"].append(f"{number} {name}")
        colour = torch.rand(3, 1, 1, generator=draws)
        for image in range(8):
            identifier = len(lists["images.txt"]) + 1
            pixels = (colour * 200 + torch.rand(3, 40, 48, generator=draws) * 55).byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(root / "images" / name / f"{image}.jpg")
            lists["images.txt"].append(f"{identifier} {name}/{image}.jpg")
            lists["image_class_labels.txt"].append(f"{identifier} {number}")
    for file, lines in lists.items():
        (root / file).write_text("\n".join(lines) + "\n")
    return root


def test_the_quickstart_prints_its_table_and_saves_its_pictures(tmp_path):
    printed = run("examples/quickstart.py", "--passes", 0.05, cwd=tmp_path)
    rows = [line.split(" R@1")[0].strip() for line in printed.splitlines() if "R@1" in line]
    assert rows == ["raw pixels", "untrained network", "UDML", "UDML-SS"]
    assert "R@1 41.1%" in printed  # raw pixels are what they always are
    for picture in ("neighbours.png", "curves.png"):
        with Image.open(tmp_path / "runs" / "quickstart" / picture) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_the_loop_without_fit_runs(tmp_path):
    printed = run("examples/own_loop.py", "--rounds", 2, "--steps", 2, cwd=tmp_path)
    assert [line.split(":")[0] for line in printed.splitlines()] == ["before", "round 0", "round 1"]


def test_the_loop_in_lightning_runs_in_two_processes(tmp_path):
    printed = run("examples/lightning_module.py", "--rounds", 2, "--steps", 2, "--devices", 2, cwd=tmp_path)
    assert len([line for line in printed.splitlines() if line.startswith("R@1")]) == 1


def test_other_losses_run(tmp_path):
    printed = run("examples/custom_loss.py", "--steps", 3, cwd=tmp_path)
    assert len([line for line in printed.splitlines() if "R@1" in line]) == 6


def test_training_without_k_means_runs(tmp_path):
    printed = run("examples/cbswr.py", "--rounds", 1, "--steps", 3, cwd=tmp_path)
    rows = [" ".join(line.split()[:2]).removesuffix(":") for line in printed.splitlines()]
    assert rows == ["before features", "before embeddings", "round 0", "after features", "after embeddings"]


def test_a_folder_in_cubs_layout_trains_and_the_saved_model_scores_the_same(tmp_path, birds):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone comes with udmlss[demo]")
    tiny = ["--backbone", "efficientnet_lite0", "--image-size", 32, "--n-clusters", 6, "--clusters-per-batch", 4]
    short = ["--samples-per-cluster", 2, "--rotation-images", 4, "--steps", 3, "--relabel-every", 2]
    new = ["--from-features", "--average-neighbors", 3, "--embedding-size", 64, "--save", "m.pt"]
    trained = run("examples/cub_resnet50.py", birds, *tiny, *short, *new, cwd=tmp_path)
    scored = run("examples/cub_resnet50.py", birds, "--evaluate", "m.pt", cwd=tmp_path)
    ours, theirs = ([line for line in out.splitlines() if line.startswith("trained")] for out in (trained, scored))
    assert len(ours) == 2
    assert ours == theirs
    assert trained.startswith("frozen features")


def test_two_processes_train_print_once_and_go_on_where_they_were(tmp_path, birds):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone comes with udmlss[demo]")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tiny = ["--backbone", "efficientnet_lite0", "--image-size", 32, "--n-clusters", 6, "--clusters-per-batch", 4]
    short = ["--samples-per-cluster", 2, "--rotation-images", 4, "--relabel-every", 2]
    more = ["--from-features", "--checkpoint", "run"]
    for steps in (2, 3):
        printed = run(
            "examples/cub_resnet50.py", birds, *tiny, *short, *more, "--steps", steps, cwd=tmp_path, launcher=torchrun
        )
        assert [line.split()[0] for line in printed.splitlines()] == ["frozen", "trained", "trained"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-000000002.pt", "step-000000003.pt"]


@pytest.mark.parametrize("backbone", ["resnet50", "googlenet"])
def test_without_internet_a_backbone_says_so_and_goes_on(monkeypatch, capsys, backbone):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import cub_resnet50 as example  # noqa: PLC0415

    whole = getattr(example.models, backbone)

    def offline(weights, **settings):
        if weights is not None:
            raise URLError("no internet")
        return whole(weights=None, **dict.fromkeys(settings, False))  # initial weights take googlenet a minute

    monkeypatch.setattr(example.models, backbone, offline)
    trunk, pretrained = example.build_trunk(backbone, 64)
    assert not pretrained
    assert f"No ImageNet weights for {backbone}" in capsys.readouterr().out
    assert trunk.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, example.FEATURES[backbone])


def test_a_folder_in_another_layout_is_refused_with_what_was_found(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(AssertionError, match=r"must be a folder in CUB_200_2011's layout.*found.*pictures"):
        run("examples/cub_resnet50.py", tmp_path, "--backbone", "efficientnet_lite0", cwd=tmp_path)
