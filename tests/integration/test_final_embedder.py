"""The embedder that `fit` computes from the features of the trained trunk."""

import pytest
import torch
from short_training import IMAGES, Augmented, make_model, short_fit, weights

from udmlss import BestWeights, EmbeddingModel, embed, embedder_from_features
from udmlss.results import LabelFreeScores
from udmlss.training import final_embedder, snapshot


def model_with_pca():
    return EmbeddingModel.from_trunk(make_model().trunk, IMAGES, 16, progress=False)


def test_an_embedder_of_from_trunk_is_fitted_to_the_features_of_the_trained_trunk():
    model, kept = model_with_pca(), model_with_pca()
    short_fit(model)
    short_fit(kept, refit_embedder=False)
    assert torch.equal(weights(model.trunk), weights(kept.trunk))
    expected = embedder_from_features(embed(model, IMAGES, output="features"), 16)
    assert torch.equal(weights(model.embedder), weights(expected))
    assert not torch.allclose(weights(model.embedder), weights(kept.embedder), atol=1e-3)


@pytest.mark.parametrize("average_weights", [True, False])
def test_features_of_the_last_scores_are_used_and_returned(average_weights, monkeypatch):
    def train(model, **changes):
        return short_fit(model, Augmented(), cluster_images=IMAGES, average_weights=average_weights, **changes)

    model, expected = model_with_pca(), model_with_pca()
    assert train(expected).features is None
    monkeypatch.setattr(final_embedder, "embed_all", None)
    result = train(model, label_free=True)
    assert torch.equal(weights(model), weights(expected))
    assert torch.equal(result.features, embed(model, IMAGES, output="features"))


def test_features_of_other_weights_are_not_used(monkeypatch):
    model, scores = model_with_pca(), iter((0.0, 2.0, 1.0))  # before training, and after the two rounds
    monkeypatch.setattr(snapshot, "label_free_scores", lambda *_: LabelFreeScores(1.0, next(scores), 1.0, 0.0))
    result = short_fit(model, Augmented(), cluster_images=IMAGES, callbacks=BestWeights())
    assert result.weights_step == 3
    assert result.features is None
    expected = embedder_from_features(embed(model, IMAGES, output="features"), 16)
    assert torch.equal(weights(model.embedder), weights(expected))


@pytest.mark.parametrize("rates", [{"trunk_lr": 0.0, "lr": 0.1}, {"trunk_lr": 0.1, "lr": 0.0}])
def test_the_embedder_is_not_recomputed_if_a_part_has_a_learning_rate_of_zero(rates):
    one, other = model_with_pca(), model_with_pca()
    short_fit(one, **rates)
    short_fit(other, refit_embedder=False, **rates)
    assert torch.equal(weights(one), weights(other))


def test_another_embedder_is_not_changed():
    one, other = make_model(), make_model()
    short_fit(one)
    short_fit(other, refit_embedder=False)
    assert torch.equal(weights(one), weights(other))


def test_weights_before_training_keep_their_embedder(monkeypatch):
    model = EmbeddingModel.from_trunk(make_model().trunk, IMAGES[:40], 16, progress=False)
    before = weights(model)
    monkeypatch.setattr(BestWeights, "on_round", lambda *_: None)
    result = short_fit(model, Augmented(), cluster_images=IMAGES, callbacks=BestWeights())
    assert result.weights_step == 0
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("part", ["trunk", "embedder"])
def test_the_embedder_is_not_recomputed_if_the_trunk_or_the_embedder_is_frozen(part):
    model, kept = model_with_pca(), model_with_pca()
    for each in (model, kept):
        getattr(each, part).requires_grad_(requires_grad=False)
    start = weights(model)
    short_fit(model)
    short_fit(kept, refit_embedder=False)
    assert torch.equal(weights(model), weights(kept))
    assert not torch.equal(weights(model), start)


def test_an_interruption_keeps_the_trained_embedder_and_is_the_reason_of_the_end(monkeypatch):
    model, kept = model_with_pca(), model_with_pca()
    short_fit(kept, refit_embedder=False)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(final_embedder, "embed_all", interrupt)
    assert short_fit(model).stop_reason == "interrupt"
    assert torch.equal(weights(model), weights(kept))


def test_of_many_images_a_random_sample_decides(monkeypatch):
    monkeypatch.setattr(final_embedder, "_LARGEST_SAMPLE", 20)
    model = model_with_pca()
    short_fit(model, max_steps=1, relabel_every=1, seed=3)
    sample = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(3))[:20].sort().values
    expected = embedder_from_features(embed(model, IMAGES[sample], output="features"), 16)
    assert torch.equal(weights(model.embedder), weights(expected))
