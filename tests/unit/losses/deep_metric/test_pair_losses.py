"""Pair losses of Deep_Metric, compared with their definitions."""

import math

import pytest
import torch
from deep_metric_losses import BATCHES, LOSSES, mean, overlapping_clusters, similarities
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners

from udmlss import UDMLSSLoss
from udmlss.losses import deep_metric

# Definitions, one anchor at a time


def log_sum_exp(values):
    return math.log(sum(math.exp(value) for value in values)) if values else 0.0


def mined(positives, negatives, epsilon=0.1):
    if not positives or not negatives:
        return [], []
    return (
        [s for s in positives if s - epsilon < max(negatives)],
        [s for s in negatives if s + epsilon > min(positives)],
    )


def naive_contrastive(embeddings, labels, threshold=0.5):
    return mean(sum(1 - s for s in p) + sum(s for s in n if s > threshold) for p, n in similarities(embeddings, labels))


def naive_binomial_deviance(embeddings, labels, *, positive_scale=2, negative_scale=40, base=0.5):
    return mean(
        mean(math.log(1 + math.exp(-positive_scale * (s - base))) for s in p)
        + mean(math.log(1 + math.exp(negative_scale * (s - base))) for s in n)
        for p, n in similarities(embeddings, labels)
    )


def lifted(positives, negatives, positive_scale=2, negative_scale=40):
    positive = 2 / positive_scale * log_sum_exp([-positive_scale * s for s in positives])
    return positive + 2 / negative_scale * log_sum_exp([negative_scale * s for s in negatives])


def naive_lifted_structure(embeddings, labels, **scales):
    return mean(lifted(p, n, **scales) for p, n in similarities(embeddings, labels))


def naive_mined_lifted_structure(embeddings, labels):
    return mean(lifted(*mined(p, n)) for p, n in similarities(embeddings, labels))


def naive_multi_similarity(embeddings, labels, *, positive_scale=2, negative_scale=40, base=0.5, epsilon=0.1):
    total = 0
    for p, n in similarities(embeddings, labels):
        positives, negatives = mined(p, n, epsilon)
        total += math.log(1 + sum(math.exp(-positive_scale * (s - base)) for s in positives)) / positive_scale
        total += math.log(1 + sum(math.exp(negative_scale * (s - base)) for s in negatives)) / negative_scale
    return total / len(labels)


def naive_hard_mining(embeddings, labels, epsilon=0.1):
    total = 0
    for p, n in similarities(embeddings, labels):
        positives, negatives = mined(p, n, epsilon)
        total += mean(1 - s for s in positives) + mean(negatives)
    return total / len(labels)


def naive_nca(embeddings, labels, scale=16, n_nearest=32):
    total = 0
    for p, n in similarities(embeddings, labels):
        if not p:
            continue
        smallest = sorted(p + n, reverse=True)[:n_nearest][-1]
        positives = [s for s in p if s >= smallest] or [max(p)]
        negatives = [s for s in n if s >= smallest]
        own, others = (sum(math.exp(scale * s) for s in values) for values in (positives, negatives))
        total -= math.log(own / (own + others))
    return total / len(labels)


DEFINITIONS = {
    "contrastive": naive_contrastive,
    "binomial_deviance": naive_binomial_deviance,
    "lifted_structure": naive_lifted_structure,
    "lifted_structure(mined=True)": naive_mined_lifted_structure,
    "multi_similarity": naive_multi_similarity,
    "hard_mining": naive_hard_mining,
    "nca": naive_nca,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_equals_the_definition(name):
    for batch, make_batch in BATCHES.items():
        embeddings, labels = make_batch()
        expected = DEFINITIONS[name](embeddings, labels)
        assert LOSSES[name]()(embeddings, labels).item() == pytest.approx(expected, abs=1e-6, rel=1e-6), batch


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_equals_the_definition_for_any_labels(labels, d, seed):
    embeddings = torch.randn(len(labels), d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for name, definition in DEFINITIONS.items():
        expected = definition(embeddings, torch.tensor(labels))
        value = LOSSES[name]()(embeddings, torch.tensor(labels)).item()
        assert value == pytest.approx(expected, abs=1e-6, rel=1e-6), name


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("contrastive", {"threshold": 0.1}),
        ("binomial_deviance", {"positive_scale": 3, "negative_scale": 10, "base": 0.2}),
        ("lifted_structure", {"positive_scale": 3, "negative_scale": 10}),
        ("multi_similarity", {"positive_scale": 3, "negative_scale": 10, "base": 0.2, "epsilon": 9}),
        ("hard_mining", {"epsilon": 0.4}),
        ("nca", {"scale": 3, "n_nearest": 4}),
    ],
)
def test_equals_the_definition_with_other_settings(name, chosen):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    expected = DEFINITIONS[name](embeddings, labels, **chosen)
    value = getattr(deep_metric, name)(**chosen)(embeddings, labels).item()
    assert value == pytest.approx(expected, abs=1e-9)
    assert value != pytest.approx(LOSSES[name]()(embeddings, labels).item())


@pytest.mark.parametrize("name", ["multi_similarity", "hard_mining", "lifted_structure(mined=True)"])
def test_a_single_mined_pair_of_each_kind_counts(name):
    degrees, labels = torch.tensor([-30.0, 0, -60, 65, 90], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    embeddings = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    assert [len(index) for index in miners.MultiSimilarityMiner(0.1)(embeddings, labels)] == [1, 1, 1, 1]
    value = LOSSES[name]()(embeddings, labels).item()
    assert value == pytest.approx(DEFINITIONS[name](embeddings, labels), abs=1e-9)
    assert value != 0


def test_nca_with_the_whole_batch_equals_that_of_pytorch_metric_learning():
    embeddings, labels = overlapping_clusters([4, 3, 5])
    expected = losses.NCALoss(softmax_scale=16, distance=distances.CosineSimilarity())(embeddings, labels)
    torch.testing.assert_close(deep_metric.nca(n_nearest=11)(embeddings, labels), expected)


def test_multi_similarity_equals_loss_and_miner_of_pytorch_metric_learning():
    embeddings, labels = overlapping_clusters([4, 4, 4])
    expected = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    assert UDMLSSLoss(deep_metric.multi_similarity())(embeddings, labels) == expected(embeddings, labels)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: deep_metric.contrastive(threshold=-0.1), "`threshold` must be at least 0, got -0.1"),
        (lambda: deep_metric.binomial_deviance(positive_scale=0), "`positive_scale` must be above 0, got 0"),
        (lambda: deep_metric.binomial_deviance(base=2), r"`base` must lie in -1\.\.1, got 2"),
        (lambda: deep_metric.lifted_structure(negative_scale=-1), "`negative_scale` must be above 0, got -1"),
        (lambda: deep_metric.multi_similarity(negative_scale=0), "`negative_scale` must be above 0, got 0"),
        (lambda: deep_metric.multi_similarity(base=-2), r"`base` must lie in -1\.\.1, got -2"),
        (lambda: deep_metric.multi_similarity(epsilon=-1), "`epsilon` must be at least 0, got -1"),
        (lambda: deep_metric.hard_mining(epsilon=-1), "`epsilon` must be at least 0, got -1"),
        (lambda: deep_metric.nca(scale=0), "`scale` must be above 0, got 0"),
        (lambda: deep_metric.nca(n_nearest=0), "`n_nearest` must be at least 1, got 0"),
    ],
)
def test_rejects_settings_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
