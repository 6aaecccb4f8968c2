"""ClusteringHead, and InformationLoss compared with a loop over images and clusters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import assert_finite, assert_ten_times_as_fast, train
from torch import nn

from udmlss.losses import ClusteringHead, InformationLoss


def naive_loss(logits, weight=1.0):
    """Return the loss, computed image by image and cluster by cluster."""
    rows = logits.softmax(dim=1).tolist()
    mean = [sum(row[j] for row in rows) / len(rows) for j in range(len(rows[0]))]
    conditional = sum(entropy(row) for row in rows) / len(rows)
    return -weight * (entropy(mean) - conditional) / math.log(len(mean))


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize(("b", "k"), [(1, 2), (2, 9), (12, 4), (64, 32)])
@pytest.mark.parametrize(("scale", "weight"), [(0.1, 1.0), (1, 4.0), (100, 1.0), (1, 0)])
def test_equals_the_definition(b, k, scale, weight):
    logits = scale * torch.randn(b, k, dtype=torch.float64)
    loss = InformationLoss(weight)(logits)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(naive_loss(logits, weight), abs=1e-6)


@given(b=st.integers(1, 8), k=st.integers(2, 6), scale=st.sampled_from([0.0, 1.0, 1e3, 1e30]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_lies_between_minus_one_and_zero(b, k, scale, seed):
    logits = (scale * torch.randn(b, k, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    loss = InformationLoss()(logits)
    [gradient] = torch.autograd.grad(loss, logits)
    assert -1 - 1e-5 <= loss.item() <= 1e-5
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (torch.eye(4).repeat(3, 1) * 1e3, -1),  # confident and balanced
        (torch.eye(4)[[0, 0, 1, 1]] * 1e3, -0.5),  # confident, with half of the clusters empty: log 2 / log 4
        (torch.eye(4)[[2, 2, 2, 2]] * 1e3, 0),  # confident, with all images in one cluster
        (torch.zeros(4, 4), 0),  # balanced, but not confident
    ],
)
def test_has_known_values_for_known_assignments(logits, expected):
    assert InformationLoss()(logits).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_equals_finite_differences():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(InformationLoss(2.0), (logits,))


def test_runs_in_float32_under_autocast():
    logits = torch.randn(12, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = InformationLoss()(logits)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_loss(logits.double()), abs=1e-5)


def test_training_a_head_finds_two_separate_groups():
    groups = torch.arange(2).repeat(16)
    embeddings = torch.randn(2, 8)[groups] + 0.05 * torch.randn(32, 8)
    head = ClusteringHead(8, 2, dropout=0.1)
    train(lambda: InformationLoss()(head(embeddings)), head.parameters(), lr=0.05, steps=50)
    found = head.eval()(embeddings).argmax(dim=1)
    assert torch.equal(found, groups) or torch.equal(found, 1 - groups)


def test_rejects_logits_of_one_cluster():
    message = r"`logits` must have at least 2 columns, one per cluster, got 1\. Raise `n_clusters`"
    with pytest.raises(ValueError, match=message):
        InformationLoss()(torch.zeros(4, 1))


def test_is_ten_times_as_fast_as_a_loop():
    logits = torch.randn(256, 256)
    assert_ten_times_as_fast(lambda: InformationLoss()(logits), lambda: naive_loss(logits))


# Head


def test_head_is_batch_norm_dropout_and_a_linear_layer():
    head, embeddings = ClusteringHead(6, 4), torch.randn(10, 6)
    norm, dropout, linear = head.layers
    assert isinstance(norm, nn.BatchNorm1d)
    assert dropout.p == 0.6
    standard = (embeddings - embeddings.mean(0)) / (embeddings.var(0, unbiased=False) + norm.eps).sqrt()
    dropout.p = 0
    torch.testing.assert_close(head(embeddings), standard @ linear.weight.T + linear.bias)


def test_head_has_32_clusters_by_default():
    assert ClusteringHead(6)(torch.randn(40, 6)).shape == (40, 32)
    assert ClusteringHead(6, 100, dropout=0)(torch.randn(40, 6)).shape == (40, 100)


def test_head_can_be_confident_with_many_clusters():
    head = ClusteringHead(6, 100, dropout=0)
    with torch.no_grad():
        head.layers[2].weight.mul_(100)
    assert head(torch.randn(40, 6)).softmax(dim=1).max(dim=1).values.median() > 0.9


def test_gradient_of_equal_embeddings_is_finite():
    embeddings = torch.ones(8, 6, requires_grad=True)
    assert_finite(InformationLoss()(ClusteringHead(6, 4)(embeddings)), embeddings)
