"""The examples run, on few images and for few steps."""

import re
import runpy
import sys
from pathlib import Path
from urllib.error import URLError

import layouts
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

import udmlss
import udmlss.data
from udmlss.models import load_model

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # the examples import each other
sys.path.insert(0, str(Path(__file__).parent))
import cub_resnet50
import examples_program
import processes

EXAMPLES = Path(cub_resnet50.__file__).parent


@pytest.fixture(scope="module")
def whole_glyphs():
    return {split: udmlss.data.glyphs(split) for split in ("train", "test")}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys, whole_glyphs):
    """A function that runs an example with few glyphs, in an empty folder, and returns the lines that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(udmlss.data, "glyphs", examples_program.few_glyphs(whole_glyphs))

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run_example


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A folder in the layout of CUB_200_2011: 8 classes of 8 images, each class with a color."""
    class_of = torch.arange(1, 9).repeat_interleave(8).tolist()
    root = layouts.cub200(tmp_path_factory.mktemp("birds") / "CUB_200_2011", class_of)
    generator = torch.Generator().manual_seed(0)
    for folder in sorted((root / "images").iterdir()):
        color = torch.rand(3, 1, 1, generator=generator)
        for path in sorted(folder.iterdir()):
            pixels = (color * 200 + torch.rand(3, 40, 48, generator=generator) * 55).byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(path)
    return root


def test_quickstart_prints_a_table_and_saves_figures_and_a_report(run, tmp_path):
    printed = run("quickstart.py", "--epochs", 0.6)
    rows = dict(re.split(r" +(?=R@1)", line) for line in printed if "R@1" in line)
    assert list(rows) == ["raw pixels", "untrained network", "trained"]
    test = udmlss.data.glyphs("test")
    assert rows["raw pixels"] == str(udmlss.evaluate_embeddings(test.images.flatten(1), test.labels))
    assert len(set(rows.values())) == 3
    for name in ("neighbors.png", "curves.png"):
        with Image.open(tmp_path / "runs" / "quickstart" / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 50
    assert "Latin characters" in (tmp_path / "runs" / "quickstart" / "report.html").read_text()


def test_a_run_is_scored_by_the_folders_of_its_images(run, tmp_path):
    rows = torch.eye(5).repeat_interleave(2, dim=0)
    paths = [f"/photos/{name}/{number}.png" for number, name in enumerate("aabbccddee")]
    parquet.write_table(pa.table({"path": paths}), tmp_path / "images.parquet")
    np.save(tmp_path / "embeddings.npy", rows.numpy())
    np.save(tmp_path / "embeddings-before.npy", rows.roll(1, dims=0).half().numpy())
    title, before, after = run("score_run.py", tmp_path)
    assert title == "10 images of 5 classes"
    assert before.startswith("before training  R@1  0.0%")
    assert after.startswith("after training   R@1 100.0%")


def test_own_loop_prints_every_round(run, tmp_path, monkeypatch):
    source = (EXAMPLES / "own_loop.py").read_text()
    short = source.replace("max_steps=300, relabel_every=75", "max_steps=2, relabel_every=1")
    assert short != source
    (tmp_path / "own_loop.py").write_text(short)
    monkeypatch.setattr(sys.modules[__name__], "EXAMPLES", tmp_path)
    assert [line.split(":")[0] for line in run("own_loop.py")] == ["before", "round 0", "round 1", "after"]


def test_custom_loss_trains_with_every_loss(run):
    printed = run("custom_loss.py", "--steps", 1)
    assert len({re.split(r" +R@1", line)[0] for line in printed if "R@1" in line}) == 6


def test_cbswr_prints_scores_before_and_after(run):
    rows = [" ".join(line.split()[:2]).removesuffix(":") for line in run("cbswr.py", "--rounds", 1, "--steps", 2)]
    assert rows == ["before features", "before embeddings", "round 0", "after features", "after embeddings"]


def test_cub_resnet50_saves_a_model_that_scores_the_same(run, birds):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone is part of udmlss[demo]")
    small = ["--backbone", "efficientnet-lite0", "--image-size", 64, "--n-clusters", 6, "--clusters-per-batch", 4]
    short = ["--samples-per-cluster", 2, "--rotation-images", 4, "--steps", 3, "--relabel-every", 2]
    embedder = ["--from-features", "--average-neighbors", 3, "--embedding-size", 64, "--save", "m.pt"]
    trained = run("cub_resnet50.py", birds, *small, *short, *embedder)
    scored = run("cub_resnet50.py", birds, "--evaluate", "m.pt")
    assert [line.split()[0] for line in trained] == ["frozen", "trained", "trained", "Saved"]
    assert trained[1:3] == scored


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning gives advice, for example
def test_a_training_in_lightning_resumes_with_its_clusters(run, tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    predict, steps = udmlss.RotationPretextHead.predict_rotations, []

    def fail_once(head, *arguments):
        steps.append(head)
        if len(steps) == 4:
            raise RuntimeError("interrupted in the second round")
        return predict(head, *arguments)

    command = ["lightning_module.py", "--rounds", 3, "--steps", 2, "--folder"]
    printed = run(*command, "uninterrupted")
    monkeypatch.setattr(udmlss.RotationPretextHead, "predict_rotations", fail_once)
    with pytest.raises(RuntimeError, match="interrupted in"):
        run(*command, "interrupted")
    assert run(*command, "interrupted")[-1] == printed[-1]
    assert len(steps) == 4 + 4  # from the beginning of the second round
    whole, resumed = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("uninterrupted", "interrupted")
    )
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    assert torch.equal(*(each["rounds"]["round"]["pseudo_labels"]["labels"] for each in (resumed, whole)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Accelerate gives advice, for example
def test_a_training_with_accelerate_resumes_with_its_clusters(run, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    start, rounds = udmlss.UDMLSSLoss.start_round, []

    def fail_once(criterion, pseudo_labels):
        rounds.append(criterion)
        if len(rounds) == 2:
            raise RuntimeError("interrupted in the second round")
        return start(criterion, pseudo_labels)

    command = ["with_accelerate.py", "--rounds", 3, "--steps", 2, "--folder"]
    printed = run(*command, "uninterrupted")
    assert [line.split(":")[0] for line in printed[:3]] == ["round 0", "round 1", "round 2"]
    monkeypatch.setattr(udmlss.UDMLSSLoss, "start_round", fail_once)
    with pytest.raises(RuntimeError, match="interrupted in"):
        run(*command, "interrupted")
    assert run(*command, "interrupted")[-3:] == printed[-3:]
    assert len(rounds) == 2 + 2  # from the beginning of the second round
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("uninterrupted", "interrupted"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_model_of_hugging_face_trains_on_its_datasets(run, birds, tmp_path, monkeypatch):
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    network.save_pretrained(tmp_path / "network")
    transformers.BitImageProcessor().save_pretrained(tmp_path / "network")
    model = ["--model", tmp_path / "network", "--image-size", 28]
    printed = run("with_hugging_face.py", birds / "images", *model, "--steps", 4, "--relabel-every", 2)
    assert [line.split(":")[0].split(" ")[0] for line in printed] == ["label-free", "saved"]
    images = datasets.load_from_disk(tmp_path / "run" / "images").with_format("torch")
    saved, backbone = load_model(tmp_path / "run" / "model", trunk=transformers.Dinov2Model(network.config))
    assert len(images) == 64
    torch.testing.assert_close(images["embedding"][:].norm(dim=1), torch.ones(64))
    trained = saved.trunk.state_dict()
    assert any(not torch.equal(trained[name], value) for name, value in network.state_dict().items())
    assert backbone is not None
    assert backbone.image_size == 28


def test_two_processes_print_once_and_resume(tmp_path, birds, monkeypatch, capfd):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone is part of udmlss[demo]")
    monkeypatch.chdir(tmp_path)
    finished = processes.finish(processes.start(examples_program.__file__, 2, birds))
    assert [code for code, _ in finished] == [0, 0], finished[0][1][-3000:]
    printed = [line.split()[0] for line in capfd.readouterr().out.splitlines() if " R@1 " in f" {line}"]
    assert printed == [*["frozen", "trained", "trained"] * 2, "R@1"]
    assert sorted(path.name for path in (tmp_path / "run").glob("*.pt")) == ["step-000000002.pt", "step-000000003.pt"]


@pytest.mark.parametrize("backbone", ["resnet50", "googlenet"])
def test_backbone_without_internet_has_random_weights(monkeypatch, capsys, backbone):
    def offline(*_arguments, **_settings):
        raise URLError("no internet")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    trunk, pretrained = cub_resnet50.build_trunk(backbone, 64)
    assert not pretrained
    assert f"The weights of {backbone} are random" in capsys.readouterr().out
    assert trunk.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, cub_resnet50.FEATURES[backbone])


def test_cub_resnet50_rejects_a_folder_of_another_layout(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"CUB_200_2011.*pictures"):
        run("cub_resnet50.py", tmp_path, "--backbone", "efficientnet-lite0")
