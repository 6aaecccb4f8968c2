import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import IterableDataset, TensorDataset

from udmlss import EmbeddingModel, embed, evaluate, evaluate_embeddings, metrics
from udmlss._chunks import ColumnRange
from udmlss.clustering.kmeans import k_means

IMAGES = torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(30) % 5
QUERIES = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))
QUERY_LABELS = torch.arange(8) % 5


@pytest.fixture
def model():
    return EmbeddingModel(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5)), nn.Linear(48, 6))


def embedded_by_hand(model, images):
    """Return features and embeddings; untrained batch normalization divides by the square root of 1 + 1e-5."""
    features = images.flatten(1) / (1 + 1e-5) ** 0.5
    embeddings = features @ model.embedder.weight.detach().T + model.embedder.bias.detach()
    return features, embeddings / embeddings.square().sum(dim=1, keepdim=True).sqrt()


def test_the_scores_are_those_of_the_embeddings_or_of_the_features(model):
    features, embeddings = embedded_by_hand(model, IMAGES)
    found = evaluate(model, IMAGES, LABELS)
    assert found == evaluate_embeddings(embeddings, LABELS) == evaluate_embeddings(embed(model, IMAGES), LABELS)
    assert list(found.recall_at) == [1, 2, 4, 8]
    assert evaluate(model, IMAGES, LABELS, output="features") == evaluate_embeddings(features, LABELS) != found


def test_queries_are_searched_among_the_images(model):
    gallery, queries = (embedded_by_hand(model, images)[1] for images in (IMAGES, QUERIES))
    found = evaluate(model, IMAGES, LABELS, queries=QUERIES, query_labels=QUERY_LABELS, ks=(1, 30))
    assert found == evaluate_embeddings(gallery, LABELS, queries=queries, query_labels=QUERY_LABELS, ks=(1, 30))
    assert found.recall_at == metrics.recall_at_k(gallery, LABELS, (1, 30), queries=queries, query_labels=QUERY_LABELS)
    without = evaluate(model, IMAGES, LABELS)
    assert (found.nmi, found.ami) == (without.nmi, without.ami)


def test_any_module_and_labels_of_any_kind_are_accepted(model):
    assert evaluate(nn.Flatten(), IMAGES, LABELS) == evaluate_embeddings(IMAGES.flatten(1), LABELS)
    expected = evaluate(model, IMAGES, LABELS, queries=QUERIES, query_labels=QUERY_LABELS, ks=(1,))
    for convert in (list, np.array):
        labels, query_labels = (convert(each.tolist()) for each in (LABELS, QUERY_LABELS))
        assert evaluate(model, IMAGES, labels, queries=QUERIES, query_labels=query_labels, ks=1) == expected


def test_labels_in_the_dataset_and_the_batch_size_do_not_matter(model):
    expected = evaluate(model, IMAGES, LABELS)
    assert evaluate(model, TensorDataset(IMAGES, 4 - LABELS), LABELS, batch_size=7) == expected


def test_images_with_a_negative_label_are_ignored(model):
    labels = torch.where(torch.arange(30) % 3 == 0, -1, LABELS)
    expected = evaluate(model, IMAGES[labels >= 0], LABELS[labels >= 0], ks=(1, 3))
    assert evaluate(model, IMAGES, labels, ks=(1, 3)) == expected
    with pytest.raises(ValueError, match=r"Scoring needs at least 2 classes, got 1\."):
        evaluate(model, IMAGES, torch.where(LABELS == 2, 2, -1), ks=1)


def test_embeddings_are_read_once_before_they_are_scored(monkeypatch):
    calls, read = [], ColumnRange.of
    monkeypatch.setattr(ColumnRange, "of", lambda matrix: calls.append(matrix.shape) or read(matrix))
    evaluate_embeddings(torch.randn(40, 5), torch.arange(40) % 4)
    assert calls == [(40, 5)]
    calls.clear()
    metrics.retrieval(torch.randn(40, 5), torch.arange(40) % 4, queries=torch.randn(7, 5), query_labels=range(7))
    assert calls == [(40, 5), (7, 5)]


def test_each_score_is_that_of_its_function():
    embeddings, labels = torch.randn(40, 5), torch.arange(40) % 4
    scores = evaluate_embeddings(embeddings, labels, ks=(3, 2), seed=3)
    clusters = k_means(embeddings, 4, seed=3)
    assert scores.recall_at == metrics.recall_at_k(embeddings, labels, (3, 2))
    assert scores.map_at_r == metrics.map_at_r(embeddings, labels)
    assert scores.r_precision == metrics.r_precision(embeddings, labels)
    assert scores.nmi == metrics.nmi(labels, clusters)
    assert scores.ami == metrics.ami(labels, clusters)


def test_separate_classes_have_the_highest_scores():
    labels = torch.arange(60) % 6
    for seed in range(3):
        embeddings = functional.normalize(torch.eye(6)[labels] + 0.01 * torch.randn(60, 6))
        scores = evaluate_embeddings(embeddings, labels, seed=seed)
        assert scores.recall_at == {1: 1, 2: 1, 4: 1, 8: 1}
        assert (scores.map_at_r, scores.r_precision, scores.nmi, scores.ami) == pytest.approx((1, 1, 1, 1))


def test_embeddings_of_any_floating_type_are_scored():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        embeddings, labels = torch.randn(40, 5).to(dtype), torch.arange(40) % 4
        assert evaluate_embeddings(embeddings, labels) == evaluate_embeddings(embeddings.float(), labels)


def test_the_model_is_not_changed_and_its_mode_does_not_matter(model):
    expected = evaluate(model.eval(), IMAGES, LABELS)
    model.train()
    model.trunk[2].eval()
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert evaluate(model, IMAGES, LABELS) == expected
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_does_not_use_global_random_state(model):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 (the global one)
    before = evaluate(model, IMAGES, LABELS)
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())
    torch.rand(1)
    assert evaluate(model, IMAGES, LABELS) == before


def test_prints_only_a_progress_bar_if_requested(model, capfd):
    evaluate(model, IMAGES, LABELS)
    assert capfd.readouterr() == ("", "")
    evaluate(model, IMAGES, LABELS, progress=True)
    assert "embedding" in capfd.readouterr().err


class Iterable(IterableDataset):
    """A dataset with a length and without indices."""

    def __len__(self):
        return 30

    def __iter__(self):
        return iter(IMAGES)


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"labels": LABELS[1:]}, ValueError, r"`labels` must have shape \(30,\), .* got shape \(29,\)"),
        ({"labels": [0] * 30}, ValueError, r"Scoring needs at least 2 classes, got 1\. Add images of another class\."),
        ({"labels": range(30)}, ValueError, r"At least one query must have an item of its class, got none of 30"),
        ({"labels": np.ones(30)}, TypeError, r"`labels` must be integers, got float64"),
        ({"ks": 30}, ValueError, r"`ks` must not exceed the .*, 29, got 30\."),
        ({"ks": []}, ValueError, r"`ks` must hold at least one integer, got \[\]\."),
        (
            {"queries": QUERIES},
            ValueError,
            r"`queries` and `query_labels` must be given together, got only `queries`\.",
        ),
        ({"queries": QUERIES, "query_labels": [1, 2]}, ValueError, r"`query_labels` must have shape \(8,\)"),
        ({"seed": -1}, ValueError, r"`seed` must be at least 0, got -1\."),
        ({"images": Iterable()}, TypeError, r"`images` must be a map-style dataset, .* got Iterable\."),
    ],
)
def test_rejects_invalid_arguments_before_the_first_image_is_embedded(changes, kind, sentence):
    class Broken(nn.Module):
        def forward(self, images):
            raise AssertionError

    with pytest.raises(kind, match=sentence):
        evaluate(Broken(), **{"images": IMAGES, "labels": LABELS} | changes)
