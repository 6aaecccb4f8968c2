import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel, embedder_from_features


def make_features(n=60, f=12):
    """Return features like those of trunks: not negative, with uneven variances and of any length."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, f, generator=generator) * torch.linspace(0.2, 3, f) + 0.5).relu() + 0.01


def cosine_similarities(rows):
    rows = functional.normalize(rows)
    return rows @ rows.T


@pytest.mark.parametrize("size", [1, 5, np.int64(11)])
def test_inner_products_equal_those_of_the_truncated_singular_value_decomposition(size):
    unit = functional.normalize(make_features())
    found = embedder_from_features(make_features(), size)(unit).detach()
    expected = torch.from_numpy(TruncatedSVD(size, algorithm="arpack").fit_transform(unit.numpy()))
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=1e-5, rtol=0)


def test_preserves_all_cosine_similarities_with_as_many_dimensions_as_the_features():
    features = make_features()
    model = EmbeddingModel(nn.Identity(), embedder_from_features(features, 12))
    torch.testing.assert_close(cosine_similarities(model.embed_features(features)), cosine_similarities(features))


def test_preserves_cosine_similarities_better_than_a_random_layer():
    features = make_features()

    def error(embedder):
        return float((cosine_similarities(embedder(features).detach()) - cosine_similarities(features)).abs().mean())

    assert error(embedder_from_features(features, 6)) < 0.5 * min(error(nn.Linear(12, 6)) for _ in range(10))


def test_the_rows_of_the_layer_are_orthonormal_and_trainable():
    embedder = embedder_from_features(make_features(n=5), 8)  # fewer images than dimensions
    torch.testing.assert_close(embedder.weight @ embedder.weight.T, torch.eye(8))
    assert not embedder.bias.any()
    embedder(make_features()).sum().backward()
    assert embedder.weight.grad is not None
    assert embedder.bias.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_length_order_data_type_and_chunks_of_the_features_do_not_matter(monkeypatch, dtype):
    features = make_features()
    expected = cosine_similarities(embedder_from_features(features, 6)(features))
    lengths = torch.linspace(1, 9, 60).unsqueeze(1)
    monkeypatch.setattr("udmlss._chunks._ROWS", 7)
    found = embedder_from_features((lengths * features).flip(0).to(dtype).requires_grad_(), 6)
    torch.testing.assert_close(cosine_similarities(found(features)), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [0, 13])
def test_rejects_an_embedding_size_out_of_range(size):
    with pytest.raises(ValueError, match=rf"`embedding_size` must lie in 1\.\.12, got {size}\."):
        embedder_from_features(make_features(), size)


def test_rejects_features_that_are_not_finite():
    features = make_features()
    features[3, 4] = torch.nan
    with pytest.raises(ValueError, match="`features` must be finite"):
        embedder_from_features(features, 4)
