import jaxtyping
import pytest
import torch
from torch import nn

from udmlss import EmbeddingModel, embedder_from_features
from udmlss._torch import trunk_of

IMAGES = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_returns_the_embedder_s_output_at_unit_length():
    model = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.Tanh()), nn.Linear(24, 5))
    features = model.trunk(IMAGES)
    expected = torch.stack([row / row.square().sum().sqrt() for row in model.embedder(features)])
    torch.testing.assert_close(model(IMAGES), expected)
    torch.testing.assert_close(model.embed_features(features), expected)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_normalizes_in_float32_at_least(dtype, expected):
    model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64).to(dtype))
    embeddings = model(IMAGES.to(dtype))
    assert embeddings.dtype == expected
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(11, dtype=expected))


def test_zero_outputs_become_zeros_and_not_nan():
    model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 5))
    nn.init.zeros_(model.embedder.weight)
    nn.init.zeros_(model.embedder.bias)
    assert torch.equal(model(IMAGES), torch.zeros(11, 5))


def test_the_trunk_of_a_model():
    model = EmbeddingModel(nn.Flatten(), nn.Identity())
    assert trunk_of(model) is model.trunk
    with pytest.raises(TypeError, match="`model` must have a `trunk` that computes features, got Flatten"):
        trunk_of(nn.Flatten())


def test_model_of_a_trunk_has_the_embedder_of_its_features():
    trunk = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 24)).train()
    statistics = trunk[1].running_mean.clone()
    model = EmbeddingModel.from_trunk(trunk, IMAGES, 5, batch_size=4, progress=False)
    assert model.trunk is trunk
    assert trunk.training
    assert torch.equal(trunk[1].running_mean, statistics)
    with torch.no_grad():
        expected = embedder_from_features(trunk.eval()(IMAGES), 5)(trunk(IMAGES))
        torch.testing.assert_close(model(IMAGES), nn.functional.normalize(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n_features", "expected"), [(24, 24), (600, 512)])
def test_default_embedding_size_is_512_or_that_of_the_features(n_features, expected):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(192, n_features))
    assert EmbeddingModel.from_trunk(trunk, IMAGES, progress=False).embedder.out_features == expected


def test_embedding_size_above_that_of_the_features_is_an_error_before_all_images_are_loaded():
    loaded = []

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, index):
            loaded.append(index)
            return IMAGES[index]

    with pytest.raises(ValueError, match=r"`embedding_size` must lie in 1\.\.192, got 256"):
        EmbeddingModel.from_trunk(nn.Flatten(), Images(), 256)
    assert set(loaded) == {0}


def test_model_of_a_trunk_needs_images_that_differ():
    with pytest.raises(ValueError, match="must differ, got 4 equal rows"):
        EmbeddingModel.from_trunk(nn.Flatten(), torch.ones(4, 3, 2, 2), progress=False)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((len, nn.Identity()), r"`trunk` must be an nn\.Module, got builtin_function_or_method\. Pass an instance"),
        ((nn.Flatten(), nn.Identity), r"`embedder` must be an nn\.Module, got the class Identity\. Pass an instance"),
    ],
)
def test_parts_must_be_modules(parts, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=message):
        EmbeddingModel(*parts)
