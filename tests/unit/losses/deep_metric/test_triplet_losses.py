"""Triplet losses of Deep_Metric and the margin loss, compared with their definitions."""

import pytest
import torch
from deep_metric_losses import BATCHES, LOSSES, distances, mean, overlapping_clusters
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import miners
from torch.nn import functional

from udmlss import UDMLSSLoss
from udmlss.losses import deep_metric
from udmlss.losses.deep_metric.mined_loss import SeededMiner
from udmlss.types import UsesSeed

# Definitions, one anchor at a time


def naive_batch_all(embeddings, labels, margin=0.2):
    return mean(max(0, a - b + margin) for p, n in distances(embeddings, labels) for a in p for b in n)


def naive_batch_hard(embeddings, labels, margin=0.2):
    return mean(max(0, max(p) - min(n) + margin) for p, n in distances(embeddings, labels) if p and n)


def naive_distance_weighted_margin(embeddings, labels, *, margin=0.2, beta=1.2, cutoff=0.5, seed=0):
    """Return the margin loss of the triplets that a miner of the same seed samples."""
    miner = SeededMiner(miners.DistanceWeightedMiner(cutoff=cutoff, nonzero_loss_cutoff=beta + margin), seed=seed)
    rows = functional.normalize(embeddings)
    terms = []
    for anchor, positive, negative in zip(*map(torch.Tensor.tolist, miner(embeddings, labels)), strict=True):
        terms.append(max(0, float((rows[anchor] - rows[positive]).norm()) - beta + margin))
        terms.append(max(0, beta - float((rows[anchor] - rows[negative]).norm()) + margin))
    return mean(term for term in terms if term > 0)


DEFINITIONS = {
    "batch_all": naive_batch_all,
    "batch_hard": naive_batch_hard,
    "distance_weighted_margin": naive_distance_weighted_margin,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_equals_the_definition(name):
    for batch, make_batch in BATCHES.items():
        if (name, batch) == ("distance_weighted_margin", "some zero vectors"):
            continue  # distances equal beta - margin, so that rounding decides whether a term counts
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
        ("batch_all", {"margin": 1}),
        ("batch_hard", {"margin": 1}),
        ("distance_weighted_margin", {"margin": 0.1, "beta": 1.0, "cutoff": 0.7, "seed": 3}),
    ],
)
def test_equals_the_definition_with_other_settings(name, chosen):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    expected = DEFINITIONS[name](embeddings, labels, **chosen)
    value = getattr(deep_metric, name)(**chosen)(embeddings, labels).item()
    assert value == pytest.approx(expected, abs=1e-9)
    assert value != pytest.approx(LOSSES[name]()(embeddings, labels).item())


def test_distance_weighted_margin_uses_the_default_seed():
    embeddings, labels = overlapping_clusters([4, 4, 4])
    criterion = UDMLSSLoss(deep_metric.distance_weighted_margin())
    [part] = [part for part in criterion.modules() if isinstance(part, UsesSeed)]
    part.set_default_seed(3)
    expected = UDMLSSLoss(deep_metric.distance_weighted_margin(seed=3))
    assert criterion(embeddings, labels) == expected(embeddings, labels)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: deep_metric.batch_all(margin=-0.1), "`margin` must be at least 0, got -0.1"),
        (lambda: deep_metric.batch_hard(margin=-0.1), "`margin` must be at least 0, got -0.1"),
        (lambda: deep_metric.distance_weighted_margin(margin=-0.1), "`margin` must be at least 0, got -0.1"),
        (lambda: deep_metric.distance_weighted_margin(beta=0), "`beta` must be above 0, got 0"),
        (lambda: deep_metric.distance_weighted_margin(cutoff=0), "`cutoff` must be above 0, got 0"),
        (lambda: deep_metric.distance_weighted_margin(seed=-1), "`seed` must be at least 0, got -1"),
    ],
)
def test_rejects_settings_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
