import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel, embedder_from_features


def features(n=60, f=12, seed=0):
    """Features as trunks have them: not negative, of uneven spread and of any length."""
    draws = torch.Generator().manual_seed(seed)
    return (torch.randn(n, f, generator=draws) * torch.linspace(0.2, 3, f) + 0.5).relu() + 0.01


def cosines(rows):
    rows = functional.normalize(rows)
    return rows @ rows.T


@pytest.mark.parametrize("size", [1, 5, 11])
def test_products_are_those_of_the_truncated_singular_value_decomposition(size):
    rows = features()
    found = embedder_from_features(rows, size)(functional.normalize(rows)).detach()
    theirs = torch.from_numpy(TruncatedSVD(size, algorithm="arpack").fit_transform(functional.normalize(rows).numpy()))
    torch.testing.assert_close(found @ found.T, theirs @ theirs.T, atol=1e-5, rtol=0)


def test_as_many_dimensions_as_the_features_have_keep_every_cosine():
    rows = features()
    model = EmbeddingModel(nn.Identity(), embedder_from_features(rows, 12))
    torch.testing.assert_close(cosines(model.embed_features(rows)), cosines(rows))


def test_fewer_dimensions_keep_cosines_better_than_a_new_layer_does():
    rows = features()
    torch.manual_seed(0)

    def error(embedder):
        return float((cosines(embedder(rows).detach()) - cosines(rows)).abs().mean())

    assert error(embedder_from_features(rows, 6)) < 0.5 * min(error(nn.Linear(12, 6)) for _ in range(10))


def test_rows_of_the_layer_are_orthonormal_and_train():
    embedder = embedder_from_features(features(n=5), 8)  # fewer images than dimensions
    torch.testing.assert_close(embedder.weight @ embedder.weight.T, torch.eye(8))
    assert not embedder.bias.any()
    embedder(features()).sum().backward()
    assert embedder.weight.grad is not None
    assert embedder.bias.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_length_order_type_and_parts_of_the_features_change_nothing(monkeypatch, dtype):
    rows = features()
    expected = cosines(embedder_from_features(rows, 6)(rows))
    lengths = torch.linspace(1, 9, 60).unsqueeze(1)
    monkeypatch.setattr("udmlss.chunking._ROWS", 7)
    found = embedder_from_features((lengths * rows).flip(0).to(dtype).requires_grad_(), 6)
    torch.testing.assert_close(cosines(found(rows)), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [0, 13])
def test_more_dimensions_than_the_features_have_are_refused(size):
    sentence = (
        rf"`embedding_size={size}` must lie between 1 and theirs, got features of 12 dimensions\. Use at most 12\."
    )
    with pytest.raises(ValueError, match=sentence):
        embedder_from_features(features(), size)


def test_features_that_are_not_finite_are_refused():
    rows = features()
    rows[3, 4] = torch.nan
    with pytest.raises(ValueError, match="`features` must be finite"):
        embedder_from_features(rows, 4)
