import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, TruncatedSVD
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel, embedder_from_features
from udmlss.models import load_model, save_model

COSINES = {"center": False, "power": 0}  # the options that preserve cosine similarities


def make_features(n=60, f=12):
    """Return features like those of trunks: not negative, with uneven variances and of any length."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, f, generator=generator) * torch.linspace(0.2, 3, f) + 0.5).relu() + 0.01


def cosine_similarities(rows):
    rows = functional.normalize(rows)
    return rows @ rows.T


@pytest.mark.parametrize("size", [1, np.int64(11)])
def test_without_centering_inner_products_equal_those_of_the_truncated_singular_value_decomposition(size):
    unit = functional.normalize(make_features())
    found = embedder_from_features(make_features(), size, **COSINES)(unit).detach()
    expected = torch.from_numpy(TruncatedSVD(size, algorithm="arpack").fit_transform(unit.numpy()))
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("power", [0, 0.5, 1])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_centered_embeddings_are_those_of_scikit_learn_divided_by_a_power_of_the_smoothed_deviations(power, size):
    features = make_features()
    embedder = embedder_from_features(features, size, power=power)
    pca = PCA().fit(features.double())
    deviations = np.sqrt(pca.explained_variance_ + pca.explained_variance_.mean())
    expected = torch.from_numpy(pca.transform(features.double()) / deviations**power)[:, :size].float()
    found = embedder(features).detach()
    torch.testing.assert_close(cosine_similarities(found), cosine_similarities(expected), atol=1e-4, rtol=0)
    products = embedder.weight @ embedder.weight.T
    torch.testing.assert_close(products, products.diagonal().diag(), atol=1e-5, rtol=0)
    if power == 0:
        torch.testing.assert_close(products, torch.eye(size))
    centered = pca.transform(features.double())[:, :size]
    assert 0.5 < found.norm() / np.linalg.norm(centered) < 1.01


def test_preserves_all_cosine_similarities_with_as_many_dimensions_as_the_features():
    features = make_features()
    model = EmbeddingModel(nn.Identity(), embedder_from_features(features, 12, **COSINES))
    torch.testing.assert_close(cosine_similarities(model.embed_features(features)), cosine_similarities(features))


def test_the_layer_is_trainable():
    embedder = embedder_from_features(make_features(), 8)
    embedder(make_features()).sum().backward()
    assert embedder.weight.grad.any()
    assert embedder.bias.grad.any()


@pytest.mark.parametrize("power", [0.5, 1])
def test_directions_in_which_the_features_do_not_differ_are_not_enlarged(power):
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 12, generator=generator)
    features = torch.randn(40, 3, generator=generator) @ basis + 5  # of rank 3
    weight = embedder_from_features(features, 12, power=power).weight
    lengths = weight.norm(dim=1)
    assert lengths.isfinite().all()
    assert lengths.max() / lengths.min() < 13**0.5  # the largest variance is at most 12 times the mean
    off = features + 1e-4 * torch.randn(40, 12, generator=generator)
    found, expected = (functional.linear(rows - features.mean(dim=0), weight) for rows in (off, features))
    torch.testing.assert_close(functional.normalize(found), functional.normalize(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_features_does_not_matter(scale):
    features = make_features()
    expected = cosine_similarities(embedder_from_features(features, 6)(features))
    found = embedder_from_features(scale * features, 6)((scale * features).double().float())
    unit = functional.normalize(found.double(), eps=0)
    torch.testing.assert_close((unit @ unit.T).float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{}, COSINES])
def test_order_data_type_and_chunks_of_the_features_do_not_matter(monkeypatch, dtype, options):
    features = make_features()
    expected = cosine_similarities(embedder_from_features(features, 6, **options)(features))
    monkeypatch.setattr("udmlss._chunks._ROWS", 7)
    found = embedder_from_features(features.flip(0).to(dtype).requires_grad_(), 6, **options)
    torch.testing.assert_close(cosine_similarities(found(features)), expected, atol=2e-3, rtol=0)


def test_without_centering_the_length_of_the_features_does_not_matter():
    features, lengths = make_features(), torch.linspace(1, 9, 60).unsqueeze(1)
    expected, found = (embedder_from_features(rows, 6, **COSINES)(features) for rows in (features, lengths * features))
    torch.testing.assert_close(cosine_similarities(found), cosine_similarities(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [0, 13])
def test_rejects_an_embedding_size_out_of_range(size):
    with pytest.raises(ValueError, match=rf"`embedding_size` must lie in 1\.\.12, got {size}\."):
        embedder_from_features(make_features(), size)


def test_rejects_features_that_are_not_finite():
    features = make_features()
    features[3, 4] = torch.nan
    with pytest.raises(ValueError, match="`features` must be finite"):
        embedder_from_features(features, 4)


def test_rejects_equal_features_which_have_no_directions():
    with pytest.raises(ValueError, match="must differ, got 9 equal rows"):
        embedder_from_features(torch.ones(9, 4), 2)
    assert embedder_from_features(torch.zeros(9, 4), 2, center=False).weight.isfinite().all()


def test_a_saved_embedder_can_be_fitted_to_other_features(tmp_path):
    model = EmbeddingModel(nn.Flatten(), embedder_from_features(make_features(), 6, power=1))
    save_model(model, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", trunk=nn.Flatten())
    assert torch.equal(loaded.embedder.weight, model.embedder.weight)
    other = make_features() ** 2
    assert torch.equal(loaded.embedder.fit(other).weight, embedder_from_features(other, 6, power=1).weight)
    with pytest.raises(ValueError, match=r"`features` must have 12 dimensions, got 5 dimensions\. Use the same trunk"):
        loaded.embedder.fit(make_features(f=5))
