import jaxtyping
import pytest
import torch
from torch import nn

from udmlss import EmbeddingModel
from udmlss.models.embedding_model import trunk_of

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
