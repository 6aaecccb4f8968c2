"""NearestPositiveLoss, compared with its definition; properties shared by all losses are in test_deep_metric.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from udmlss.losses import NearestPositiveLoss


def naive_loss(embeddings, labels, margin=0.1):
    rows = [row / row.norm().clamp(min=1e-12) for row in embeddings]
    total = 0.0
    for i in range(len(rows)):
        distances = [float((rows[i] - row).norm()) for row in rows]
        positives = [distances[j] for j in range(len(rows)) if j != i and labels[j] == labels[i]]
        if not positives:
            continue
        negatives = [distances[j] for j in range(len(rows)) if labels[j] != labels[i]]
        closer = [distance for distance in negatives if distance < min(positives) + margin]
        if closer:
            total += min(positives) - sum(closer) / len(closer) + margin
    return total / len(rows)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_equals_the_definition_for_any_labels(labels, d, seed):
    embeddings = torch.randn(len(labels), d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    value = NearestPositiveLoss()(embeddings, labels).item()
    assert value == pytest.approx(naive_loss(embeddings, labels), abs=1e-6)


@pytest.mark.parametrize("margin", [0, 0.05, 0.3, 3])
def test_equals_the_definition_for_any_margin(margin):
    embeddings, labels = torch.randn(40, 8, dtype=torch.float64), torch.arange(8).repeat(5)
    expected = naive_loss(embeddings, labels, margin)
    assert expected > 0
    assert NearestPositiveLoss(margin)(embeddings, labels).item() == pytest.approx(expected, abs=1e-6)


def test_only_the_closest_positive_receives_a_gradient():
    degrees = torch.tensor([0.0, 20, 90, -10]).deg2rad()
    embeddings = torch.stack([degrees.cos(), degrees.sin()], dim=1).requires_grad_()
    loss = NearestPositiveLoss()(embeddings, torch.tensor([0, 0, 0, 1]))
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert gradient[[0, 1, 3]].any(dim=1).all()
    assert not gradient[2].any()


def test_negatives_beyond_the_margin_receive_no_gradient():
    embeddings = functional.normalize(torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])).requires_grad_()
    loss = NearestPositiveLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss == 0
    assert not embeddings.grad.any()


def test_rejects_a_negative_margin_and_missing_labels():
    with pytest.raises(ValueError, match=r"`margin` must be at least 0, got -0\.1"):
        NearestPositiveLoss(-0.1)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(4,\)"):
        NearestPositiveLoss()(torch.eye(4), [0, 0, 1])
