import random
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from udmlss import EmbeddingModel, embed
from udmlss._torch import evaluation_mode, restore_modes

IMAGES = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def make_model():
    """Return a model with batch norm and dropout, in training mode, whose statistics are not the initial ones."""
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


def one_by_one(model, images):
    """Return features and embeddings of each image alone, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.trunk(image[None]) for image in images])
        raw = torch.cat([model.embedder(row[None]) for row in features])
    model.train()
    return features, torch.stack([row / row.square().sum().sqrt() for row in raw])


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def untyped(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_the_model_gives_embeddings_of_unit_length_in_the_embedder_s_direction(model):
    model.eval()
    raw = model.embedder(model.trunk(IMAGES))
    embeddings = model(IMAGES)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(11))
    torch.testing.assert_close(embeddings, torch.stack([row / row.square().sum().sqrt() for row in raw]))
    torch.testing.assert_close(model.embed_features(model.trunk(IMAGES)), embeddings)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_the_length_is_one_to_float32_s_precision_at_least(dtype, expected):
    model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64).to(dtype))
    embeddings = model(IMAGES.to(dtype))
    assert embeddings.dtype == expected
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(11, dtype=expected))


@pytest.mark.parametrize("what", ["embeddings", "features"])
@given(batch_size=st.integers(1, 13))
@settings(max_examples=13, deadline=None)
def test_every_image_gets_its_row_whatever_the_batches(what, batch_size):
    model = make_model()
    features, embeddings = one_by_one(model, IMAGES)
    found = embed(model, IMAGES, output=what, batch_size=batch_size)
    torch.testing.assert_close(found, features if what == "features" else embeddings, rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"


def test_workers_change_nothing(model):
    alone = embed(model, IMAGES, batch_size=4)
    torch.testing.assert_close(embed(model, IMAGES, batch_size=4, num_workers=2), alone, rtol=1e-6, atol=1e-6)


def test_what_items_hold_beside_the_image_is_ignored(model):
    labelled = TensorDataset(IMAGES, torch.arange(11))
    assert torch.equal(embed(model, labelled), embed(model, IMAGES))


def test_a_module_that_is_no_embedding_model_embeds_too():
    found = embed(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), IMAGES, batch_size=4)
    assert found.shape == (11, 7)


def test_a_model_without_parameters_runs_on_the_cpu():
    assert torch.equal(embed(nn.Flatten(), IMAGES), IMAGES.flatten(1))


def test_every_part_is_put_back_into_its_own_mode(model):
    model.trunk[1].eval()
    model.embedder.eval()
    before = [part.training for part in model.modules()]
    assert len(set(before)) == 2
    embed(model, IMAGES)
    embed(model, IMAGES, output="features")
    assert [part.training for part in model.modules()] == before


def test_modes_are_put_back_after_an_error_too(model):
    model.trunk[1].eval()
    before = [part.training for part in model.modules()]
    with pytest.raises(TypeError, match="in item 1"):
        embed(model, [IMAGES[0], None])
    assert [part.training for part in model.modules()] == before


def test_evaluating_evaluates_every_part_for_its_block_alone(model):
    with evaluation_mode(model):
        assert not any(part.training for part in model.modules())
    assert all(part.training for part in model.modules())


def test_modes_are_kept_over_several_modules(model):
    head = nn.Linear(2, 2).eval()
    with restore_modes(model, head):
        model.eval()
        head.train()
    assert all(part.training for part in model.modules())
    assert not head.training


def test_parameters_statistics_and_gradients_stay_as_they_are(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embed(model, IMAGES, batch_size=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_global_random_state_is_touched(model, num_workers, untyped):  # the type checker draws
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 (the global one)
    embed(model, IMAGES, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_result_carries_no_gradient_and_can_be_learnt_from(model):
    found = embed(model, IMAGES)
    assert not found.requires_grad
    assert not found.is_inference()
    weight = torch.ones(5, requires_grad=True)
    (found @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, found.sum(0))
    found.requires_grad_().sum().backward()
    assert torch.equal(found.grad, torch.ones(11, 5))


def test_bfloat16_is_close_and_comes_back_as_float32(model):
    exact, found = embed(model, IMAGES), embed(model, IMAGES, precision="bfloat16")
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-2)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(11))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("what", ["embeddings", "features"])
def test_bfloat16_holds_in_the_forward_pass(model, what):
    seen = []
    model.trunk[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    assert embed(model, IMAGES, output=what, precision="bfloat16").dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_channels_last_gives_the_model_such_batches_and_the_same_embeddings(model):
    seen = []
    model.trunk.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    expected = embed(model, IMAGES)
    torch.testing.assert_close(embed(model, IMAGES, channels_last=True), expected, rtol=1e-5, atol=1e-6)
    assert seen == [False, True]


@pytest.mark.parametrize(("progress", "shown"), [(False, False), (True, True)])
def test_only_progress_prints(model, capsys, progress, shown):
    embed(model, IMAGES, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("embedding" in err) == shown


@pytest.mark.parametrize("what", ["embeddings", "features"])
def test_a_trunk_that_does_not_flatten_is_refused_with_the_remedy(what, untyped):
    model = EmbeddingModel(nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1)), nn.Linear(6, 5))
    sentence = (
        r"The trunk must return features \(b f\), got shape \(11, 6, 1, 1\)\. End it in .*AdaptiveAvgPool2d\(1\) "
    )
    with pytest.raises(ValueError, match=sentence + r"and nn.Flatten\(\)"):
        embed(model, IMAGES, output=what)


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [
        ({"what": "logits"}, "`what` must be one of 'embeddings', 'features', got 'logits'"),
        ({"precision": "float16"}, "`precision` must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"dtype": "bfloat16"}, "`dtype` must be one of 'float32', 'float16', got 'bfloat16'"),
        (
            {"dtype": "float16"},
            '`dtype="float16"` is for a file, got `out=None`. Pass `out="embeddings.npy"` as well',
        ),
    ],
)
def test_unknown_choices_are_refused(model, settings_, sentence, untyped):
    with pytest.raises(ValueError, match=sentence):
        embed(model, IMAGES, **settings_)


def test_no_images_are_refused(model):
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        embed(model, IMAGES[:0])


def test_an_embedder_that_gives_nothing_gives_zeros_and_no_nan():
    model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 5))
    nn.init.zeros_(model.embedder.weight)
    nn.init.zeros_(model.embedder.bias)
    assert torch.equal(embed(model, IMAGES), torch.zeros(11, 5))


def test_the_features_are_those_the_embedder_sees(model):
    features = embed(model, IMAGES, output="features")
    with torch.no_grad():
        expected = functional.normalize(model.embedder(features))
    torch.testing.assert_close(embed(model, IMAGES), expected, rtol=1e-6, atol=1e-6)


def test_features_of_a_model_without_a_trunk_are_refused():
    with pytest.raises(TypeError, match=r"come from a model with a `trunk`, got Flatten\. Wrap it: EmbeddingModel"):
        embed(nn.Flatten(), torch.zeros(2, 1, 2, 2), output="features")


@pytest.mark.parametrize("what", ["embeddings", "features"])
@pytest.mark.parametrize("batch_size", [4, 11, 20])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_holds_the_rows_that_memory_would(model, tmp_path, what, batch_size, kind):
    out = tmp_path / "rows.npy"
    found = embed(model, IMAGES, output=what, batch_size=batch_size, out=kind(out))
    expected = embed(model, IMAGES, output=what, batch_size=batch_size)
    assert torch.equal(found, expected)
    assert np.array_equal(np.load(out), expected.numpy())
    assert not found.is_inference()
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_a_file_of_float16_holds_the_rows_rounded(model, tmp_path):
    found = embed(model, IMAGES, batch_size=4, out=tmp_path / "rows.npy", dtype="float16")
    assert found.dtype == torch.float16
    assert torch.equal(found, embed(model, IMAGES, batch_size=4).half())
    assert (tmp_path / "rows.npy").stat().st_size == 128 + 11 * 5 * 2


def test_an_image_that_fails_leaves_no_file_and_an_older_one_as_it_was(model, tmp_path):
    out = tmp_path / "rows.npy"
    older = embed(model, IMAGES, out=out).clone()
    with pytest.raises(TypeError, match="in item 5"):
        embed(model, [*IMAGES[:5], None], batch_size=2, out=out)
    assert torch.equal(torch.from_numpy(np.load(out)), older)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_a_folder_that_is_not_there_is_refused_before_the_model_runs(tmp_path):
    model = nn.Flatten()
    model.register_forward_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=r"`out` must name a file in a folder that is there, got .*nowhere"):
        embed(model, IMAGES, out=tmp_path / "nowhere" / "rows.npy")


@pytest.mark.parametrize("out", [None, "rows.npy"])
def test_images_of_several_sizes_whose_embeddings_differ_in_length_are_refused(tmp_path, monkeypatch, untyped, out):
    monkeypatch.chdir(tmp_path)
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)]
    with pytest.raises(ValueError, match=r"Embeddings must have one dimension, got 48 after 192\. Crop the images"):
        embed(nn.Flatten(), images, batch_size=1, out=out)


@pytest.mark.parametrize("rows", [slice(2), [0, 0, 1, 2]])
@pytest.mark.parametrize("out", [None, "rows.npy"])
def test_a_model_that_returns_another_number_of_rows_is_refused(tmp_path, monkeypatch, untyped, rows, out):
    class Picks(nn.Module):
        def forward(self, images):
            return images.flatten(1)[rows]

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"A model must return one row per image, got [24] for 3 images\. Pool what"):
        embed(Picks(), IMAGES[:3], out=out)
    assert not list(tmp_path.iterdir())
