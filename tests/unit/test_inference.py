import random
from multiprocessing import active_children
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import end_children
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from udmlss import EmbeddingModel, embed
from udmlss.inference import InferenceOptions, embed_features

IMAGES = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def make_model():
    """Return a model with batch norm, whose statistics are not the initial ones, and dropout, in training mode."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
    )
    trunk[1].running_mean.normal_()
    trunk[1].running_var.uniform_(0.5, 2)
    return EmbeddingModel(trunk, nn.Linear(24, 5))


def expected_rows(model, output):
    """Return the features or embeddings of each image alone, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        rows = torch.cat([model.trunk(image[None]) for image in IMAGES])
        if output == "embeddings":
            rows = torch.cat([model.embedder(row[None]) for row in rows])
            rows = rows / rows.square().sum(dim=1, keepdim=True).sqrt()
    model.train()
    return rows


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def without_shape_checks(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("output", ["embeddings", "features"])
@given(batch_size=st.integers(1, 13).map(np.int8))
@settings(max_examples=13, deadline=None)
def test_returns_one_row_per_image_for_any_batch_size(output, batch_size):
    model = make_model()
    found = embed(model, IMAGES, output=output, batch_size=batch_size)
    torch.testing.assert_close(found, expected_rows(model, output), rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"


def test_workers_do_not_change_the_rows(model):
    alone = embed(model, IMAGES, batch_size=4)
    torch.testing.assert_close(embed(model, IMAGES, batch_size=4, num_workers=2), alone, rtol=1e-6, atol=1e-6)


def test_ignores_other_fields_of_the_items(model):
    assert torch.equal(embed(model, TensorDataset(IMAGES, torch.arange(11))), embed(model, IMAGES))


def test_embeds_with_any_module():
    found = embed(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), IMAGES, batch_size=4)
    assert found.shape == (11, 7)
    assert torch.equal(embed(nn.Flatten(), IMAGES), IMAGES.flatten(1))  # without parameters, on the CPU


@pytest.mark.usefixtures("without_shape_checks")  # the compiler would trace the checks
@pytest.mark.parametrize("output", ["embeddings", "features"])
@pytest.mark.parametrize("compiled", ["model", "trunk"])
def test_embeds_with_a_compiled_model(model, output, compiled):
    model.trunk[1].eval()
    expected = embed(model, IMAGES, output=output)
    if compiled == "trunk":
        wrapped = EmbeddingModel(torch.compile(model.trunk, backend="eager"), model.embedder)
    else:
        wrapped = torch.compile(model, backend="eager")
    before = [part.training for part in wrapped.modules()]
    assert torch.equal(embed(wrapped, IMAGES, output=output), expected)
    assert [part.training for part in wrapped.modules()] == before


@pytest.mark.parametrize("broken", [False, True])
def test_restores_the_mode_of_every_submodule(model, broken):
    model.trunk[1].eval()
    model.embedder.eval()
    before = [part.training for part in model.modules()]
    if broken:
        with pytest.raises(TypeError, match="in item 1"):
            embed(model, [IMAGES[0], None])
    else:
        embed(model, IMAGES)
        embed(model, IMAGES, output="features")
    assert [part.training for part in model.modules()] == before


def test_does_not_change_parameters_statistics_or_gradients(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embed(model, IMAGES, batch_size=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.usefixtures("without_shape_checks")  # the checks sample random numbers
@pytest.mark.parametrize("num_workers", [0, 1])
def test_does_not_change_global_random_states(model, num_workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    embed(model, IMAGES, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_result_is_an_ordinary_tensor_without_gradient(model):
    found = embed(model, IMAGES)
    assert not found.requires_grad
    assert not found.is_inference()
    found.requires_grad_().sum().backward()
    assert torch.equal(found.grad, torch.ones(11, 5))


@pytest.mark.parametrize("output", ["embeddings", "features"])
def test_bfloat16_runs_the_forward_pass_and_returns_float32(model, output):
    dtypes = []
    model.trunk[0].register_forward_hook(lambda _module, _inputs, rows: dtypes.append(rows.dtype))
    exact, found = (embed(model, IMAGES, output=output, precision=kind) for kind in ("float32", "bfloat16"))
    assert dtypes == [torch.float32, torch.bfloat16]
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    if output == "embeddings":
        torch.testing.assert_close(found.norm(dim=1), torch.ones(11))


@pytest.mark.parametrize("output", ["embeddings", "features"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("parts", [("trunk",), ("embedder",), ("trunk", "embedder")])
def test_a_model_of_another_data_type_gives_the_same_rows_in_float32(model, output, dtype, tolerance, parts):
    expected = embed(model, IMAGES, output=output)
    for part in parts:
        getattr(model, part).to(dtype)
    found = embed(model, IMAGES, output=output)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(embed(model, IMAGES, output=output, precision="bfloat16"), expected, rtol=0, atol=5e-2)
    features = embed(model, IMAGES, output="features")
    torch.testing.assert_close(embed_features(model, features), embed(model, IMAGES), rtol=0, atol=tolerance)


class Grid(nn.Module):
    """A trunk that caches a tensor in its first forward pass."""

    grid = None

    def forward(self, images):
        if self.grid is None:
            self.grid = torch.linspace(0, 1, images.shape[-1])
        return (images * self.grid).flatten(1)


def test_a_tensor_that_is_cached_in_the_first_pass_can_be_used_in_training():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Grid())
    embed(model, IMAGES)
    model(IMAGES).sum().backward()
    assert model[0].weight.grad.any()


class Logged(Dataset):
    """Images that append their index to a file when they are loaded."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        with self.path.open("a") as file:
            file.write(f"{index} ")
        return IMAGES[index]


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loads_every_image_once_with_workers_that_are_started_once(tmp_path, monkeypatch, progress, num_workers):
    started, start = [], _MultiProcessingDataLoaderIter.__init__
    monkeypatch.setattr(
        _MultiProcessingDataLoaderIter, "__init__", lambda *arguments: (started.append(1), start(*arguments))[1]
    )
    log = tmp_path / "log"
    end_children()
    embed(nn.Flatten(), Logged(log), batch_size=2, num_workers=num_workers, progress=progress)
    assert sorted(map(int, log.read_text().split())) == list(range(11))
    assert len(started) == (num_workers > 0)
    assert not active_children()


def test_images_get_the_memory_format_of_the_model(model):
    formats = []
    model.trunk.register_forward_pre_hook(
        lambda _module, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    expected = embed(model, IMAGES)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(embed(model, IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert formats == [False, True]


def test_embeddings_of_features_are_those_of_the_images(model, tmp_path, monkeypatch):
    monkeypatch.setattr("udmlss.inference._FEATURES_AT_ONCE", 4)
    features = embed(model, IMAGES, output="features")
    for folder in (None, tmp_path):
        found = embed_features(model, features, folder)
        torch.testing.assert_close(found, embed(model, IMAGES), rtol=1e-6, atol=1e-6)
        assert not found.is_inference()
        assert model.training


@pytest.mark.parametrize(("progress", "shown"), [(False, False), (True, True)])
def test_prints_only_a_progress_bar(model, capsys, progress, shown):
    embed(model, IMAGES, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("embedding" in err) == shown


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("output", ["embeddings", "features"])
def test_rejects_a_trunk_that_does_not_flatten(output):
    model = EmbeddingModel(nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1)), nn.Linear(6, 5))
    message = (
        r"The trunk must return features of shape \(b, f\), got shape \(11, 6, 1, 1\)\. End it in .*nn.Flatten\(\)"
    )
    with pytest.raises(ValueError, match=message):
        embed(model, IMAGES, output=output)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "logits"}, ValueError, "`output` must be one of 'embeddings', 'features', got 'logits'"),
        ({"precision": "float8"}, ValueError, "'float32', 'bfloat16', 'float16', got 'float8'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "`batch_size` must be an integer, got 2.0"),
        ({"num_workers": -1}, ValueError, "`num_workers` must be at least 0, got -1"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"dtype": "bfloat16"}, ValueError, "`dtype` must be one of 'float32', 'float16', got 'bfloat16'"),
        (
            {"dtype": "float16"},
            ValueError,
            '`dtype="float16"` needs a file, got `out=None`. Pass `out="embeddings.npy"',
        ),
        ({"out": "rows.npy", "sharded": True}, ValueError, "`out` must be written by one process, got `sharded=True`"),
    ],
)
def test_rejects_invalid_options(model, options, error, message):
    with pytest.raises(error, match=message):
        embed(model, IMAGES, **options)


def test_options_check_themselves():
    assert InferenceOptions(np.int64(2), "bfloat16").batch_size == 128
    with pytest.raises(ValueError, match="`num_workers` must be at least 0"):
        InferenceOptions(-1)


def test_rejects_an_empty_dataset(model):
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        embed(model, IMAGES[:0])


def test_rejects_features_of_a_model_without_a_trunk():
    message = r"`model` must have a `trunk` that computes features, got Flatten\. Wrap it: EmbeddingModel"
    with pytest.raises(TypeError, match=message):
        embed(nn.Flatten(), torch.zeros(2, 1, 2, 2), output="features")


@pytest.mark.parametrize("output", ["embeddings", "features"])
@pytest.mark.parametrize("batch_size", [4, 20])
@pytest.mark.parametrize("kind", [str, Path])
def test_writes_to_a_file_the_rows_that_memory_would_hold(model, tmp_path, output, batch_size, kind):
    out = tmp_path / "rows.npy"
    found = embed(model, IMAGES, output=output, batch_size=batch_size, out=kind(out))
    expected = embed(model, IMAGES, output=output, batch_size=batch_size)
    assert torch.equal(found, expected)
    assert np.array_equal(np.load(out), expected.numpy())
    assert not found.is_inference()
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_writes_to_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = embed(model, IMAGES, out="~/rows.npy")
    assert np.array_equal(np.load(tmp_path / "rows.npy"), found.numpy())


def test_changing_the_result_does_not_change_the_file(model, tmp_path):
    out = tmp_path / "rows.npy"
    found = embed(model, IMAGES, out=out)
    content = out.read_bytes()
    found.zero_()
    assert not found.any()
    assert out.read_bytes() == content


def test_a_float16_file_holds_rounded_rows(model, tmp_path):
    found = embed(model, IMAGES, batch_size=4, out=tmp_path / "rows.npy", dtype="float16")
    assert found.dtype == torch.float16
    assert torch.equal(found, embed(model, IMAGES, batch_size=4).half())
    assert (tmp_path / "rows.npy").stat().st_size == 128 + 11 * 5 * 2


def test_an_error_of_an_image_keeps_the_previous_file(model, tmp_path):
    out = tmp_path / "rows.npy"
    embed(model, IMAGES, out=out)
    content = out.read_bytes()
    with pytest.raises(TypeError, match="in item 5"):
        embed(model, [*IMAGES[:5], None], batch_size=2, out=out)
    assert out.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_rejects_a_folder_before_the_model_runs_and_creates_missing_ones(tmp_path):
    embed(nn.Flatten(), IMAGES, out=tmp_path / "new" / "rows.npy")
    model = nn.Flatten()
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"An output file must not be a folder, got .*new"):
        embed(model, IMAGES, out=tmp_path / "new")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("out", [None, "rows.npy"])
def test_rejects_embeddings_of_different_dimensions(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)]
    with pytest.raises(
        ValueError, match=r"Embeddings must have the same dimension, got 48 after 192\. Crop the images"
    ):
        embed(nn.Flatten(), images, batch_size=1, out=out)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("rows", [slice(2), [0, 0, 1, 2]])
@pytest.mark.parametrize("out", [None, "rows.npy"])
def test_rejects_a_model_that_returns_another_number_of_rows(tmp_path, monkeypatch, rows, out):
    class SelectRows(nn.Module):
        def forward(self, images):
            return images.flatten(1)[rows]

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"The model must return one row per image, got [24] for 3 images\. Pool the"):
        embed(SelectRows(), IMAGES[:3], out=out)
    assert not list(tmp_path.iterdir())
