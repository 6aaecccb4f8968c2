import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from udmlss import EmbeddingModel, embed, evaluate, evaluate_embeddings, metrics
from udmlss.clustering.kmeans import k_means

IMAGES = torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(30) % 5
QUERIES = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))
QUERY_LABELS = torch.arange(8) % 5


@pytest.fixture
def model():
    return EmbeddingModel(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5)), nn.Linear(48, 6))


def embedded_by_hand(model, images):
    """Batch norm as it is before any training divides by one and a bit; dropout is off."""
    features = images.flatten(1) / (1 + 1e-5) ** 0.5
    embeddings = features @ model.embedder.weight.detach().T + model.embedder.bias.detach()
    return features, embeddings / embeddings.square().sum(dim=1, keepdim=True).sqrt()


def test_the_scores_are_those_of_the_embeddings(model):
    _, embeddings = embedded_by_hand(model, IMAGES)
    found, expected = evaluate(model, IMAGES, LABELS), evaluate_embeddings(embeddings, LABELS)
    assert found == expected
    assert list(found.recall_at) == [1, 2, 4, 8]


def test_the_scores_of_features_are_those_of_the_trunk(model):
    features, embeddings = embedded_by_hand(model, IMAGES)
    found = evaluate(model, IMAGES, LABELS, output="features")
    assert found == evaluate_embeddings(features, LABELS) != evaluate_embeddings(embeddings, LABELS)


def test_queries_are_searched_for_in_the_images(model):
    gallery, queries = (embedded_by_hand(model, images)[1] for images in (IMAGES, QUERIES))
    found = evaluate(model, IMAGES, LABELS, queries=QUERIES, query_labels=QUERY_LABELS, ks=(1, 30))
    assert found == evaluate_embeddings(gallery, LABELS, queries=queries, query_labels=QUERY_LABELS, ks=(1, 30))
    assert found.recall_at == metrics.recall_at_k(gallery, LABELS, (1, 30), queries=queries, query_labels=QUERY_LABELS)
    assert (found.nmi, found.ami) == (evaluate(model, IMAGES, LABELS).nmi, evaluate(model, IMAGES, LABELS).ami)


def test_any_module_from_images_to_embeddings_is_scored():
    assert evaluate(nn.Flatten(), IMAGES, LABELS) == evaluate_embeddings(IMAGES.flatten(1), LABELS)


def test_labels_within_the_data_set_and_the_size_of_batches_do_not_matter(model):
    expected = evaluate(model, IMAGES, LABELS)
    assert evaluate(model, TensorDataset(IMAGES, 4 - LABELS), LABELS, batch_size=7) == expected


@pytest.mark.parametrize("ks", [(1,), (3, 2)])
def test_every_score_is_that_of_its_own_function(ks):
    embeddings = torch.randn(40, 5)
    labels = torch.arange(40) % 4
    scores = evaluate_embeddings(embeddings, labels, ks=ks, seed=3)
    clusters = k_means(embeddings, 4, seed=3)
    assert scores.recall_at == metrics.recall_at_k(embeddings, labels, ks)
    assert scores.map_at_r == metrics.map_at_r(embeddings, labels)
    assert scores.r_precision == metrics.r_precision(embeddings, labels)
    assert scores.nmi == metrics.nmi(labels, clusters)
    assert scores.ami == metrics.ami(labels, clusters)


@pytest.mark.parametrize("seed", range(3))
def test_classes_far_apart_are_retrieved_and_grouped_without_a_fault(seed):
    labels = torch.arange(60) % 6
    embeddings = functional.normalize(torch.eye(6)[labels] + 0.01 * torch.randn(60, 6))
    scores = evaluate_embeddings(embeddings, labels, seed=seed)
    assert scores.recall_at == {1: 1, 2: 1, 4: 1, 8: 1}
    assert (scores.map_at_r, scores.r_precision, scores.nmi, scores.ami) == pytest.approx((1, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_floating_type_are_scored(dtype):
    embeddings = torch.randn(40, 5).to(dtype)
    labels = torch.arange(40) % 4
    assert evaluate_embeddings(embeddings, labels) == evaluate_embeddings(embeddings.float(), labels)


def test_the_model_keeps_its_modes_and_its_statistics(model):
    model.train()
    model.trunk[2].eval()
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, IMAGES, LABELS)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_scores_are_the_same_whatever_mode_the_model_is_in(model):
    assert evaluate(model.train(), IMAGES, LABELS) == evaluate(model.eval(), IMAGES, LABELS)


def test_no_global_random_state_is_read_or_changed(model):
    numpys, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 (the one to leave alone)
    before = evaluate(model, IMAGES, LABELS)
    assert np.array_equal(numpys, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torchs, torch.get_rng_state())
    torch.rand(1)
    assert evaluate(model, IMAGES, LABELS) == before


def test_nothing_is_printed_unless_asked_for(model, capfd):
    evaluate(model, IMAGES, LABELS)
    assert capfd.readouterr() == ("", "")
    evaluate(model, IMAGES, LABELS, progress=True)
    assert "embedding" in capfd.readouterr().err


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(ValueError, match=r"needs at least 2 classes, got 1\. "):
        evaluate_embeddings(torch.randn(10, 3), torch.zeros(10, dtype=torch.int64))


def test_embedding_of_the_model_gives_the_same_scores(model):
    assert evaluate_embeddings(embed(model, IMAGES), LABELS) == evaluate(model, IMAGES, LABELS)


def test_a_seed_that_k_means_cannot_take_is_refused_before_any_image_is_embedded():
    with pytest.raises(ValueError, match=r"`seed` must lie in 0\.\.4294967295, got -1\."):
        evaluate(nn.Identity(), [None], LABELS, seed=-1)
