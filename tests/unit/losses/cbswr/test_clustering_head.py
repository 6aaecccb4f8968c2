"""The in-batch clustering head, and the mutual information against a loop over images and clusters."""

import math
import time

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from udmlss.losses import ClusteringHead, InformationLoss


def by_hand(logits, weight=1.0):
    """Return the loss as its equation reads."""
    rows = [softmax(row) for row in logits.tolist()]
    mean = [sum(row[j] for row in rows) / len(rows) for j in range(len(rows[0]))]
    inside = sum(entropy(row) for row in rows) / len(rows)
    return -weight * (entropy(mean) - inside) / math.log(len(mean))


def softmax(row):
    largest = max(row)
    powers = [math.exp(value - largest) for value in row]
    whole = sum(powers)
    return [power / whole for power in powers]


def entropy(shares):
    return -sum(share * math.log(share) for share in shares if share > 0)


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some values before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("b", "k"), [(1, 2), (2, 9), (12, 4), (64, 32)])
@pytest.mark.parametrize("scale", [0.1, 1, 100])
@pytest.mark.parametrize("weight", [0, 1.0, 4.0])
def test_the_loss_is_what_a_loop_over_images_and_clusters_makes_of_the_equation(b, k, scale, weight):
    logits = scale * torch.randn(b, k, dtype=torch.float64)
    loss = InformationLoss(weight)(logits)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(by_hand(logits, weight), abs=1e-6)


@given(b=st.integers(1, 8), k=st.integers(2, 6), scale=st.sampled_from([0.0, 1.0, 1e3, 1e30]), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_images_tell_of_clusters_between_nothing_and_all(b, k, scale, seed):
    logits = (scale * torch.randn(b, k, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    loss = InformationLoss()(logits)
    [gradient] = torch.autograd.grad(loss, logits)
    assert -1 - 1e-5 <= loss.item() <= 1e-5
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (torch.eye(4).repeat(3, 1) * 1e3, -1),  # sure and balanced
        (torch.eye(4)[[0, 0, 1, 1]] * 1e3, -0.5),  # sure, half of the clusters empty: log 2 of log 4
        (torch.eye(4)[[2, 2, 2, 2]] * 1e3, 0),  # sure, all in one
        (torch.zeros(4, 4), 0),  # balanced, not sure
    ],
)
def test_known_assignments_have_known_losses(logits, expected):
    assert InformationLoss()(logits).item() == pytest.approx(expected, abs=1e-6)


def test_the_order_of_images_and_the_names_of_clusters_make_no_difference():
    logits = torch.randn(12, 5, dtype=torch.float64)
    loss = InformationLoss()(logits)
    torch.testing.assert_close(InformationLoss()(logits[torch.randperm(12)]), loss)
    torch.testing.assert_close(InformationLoss()(logits[:, torch.randperm(5)]), loss)


def test_the_size_of_the_batch_makes_no_difference():
    logits = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(InformationLoss()(logits.repeat(4, 1)), InformationLoss()(logits))


def test_the_gradient_is_that_of_finite_differences():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(InformationLoss(2.0), (logits,))


def test_half_precision_is_judged_in_float32_also_under_autocast():
    logits = torch.randn(12, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = InformationLoss()(logits)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(logits.double()), abs=1e-5)


def test_a_head_trained_by_it_finds_two_groups_that_stand_apart():
    groups = torch.arange(2).repeat(16)
    embeddings = torch.randn(2, 8)[groups] + 0.05 * torch.randn(32, 8)
    head = ClusteringHead(8, 2, dropout=0.1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(50):
        loss = InformationLoss()(head(embeddings))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = head.eval()(embeddings).argmax(dim=1)
    assert torch.equal(found, groups) or torch.equal(found, 1 - groups)


def test_one_cluster_tells_nothing_and_is_refused():
    with pytest.raises(ValueError, match=r"`logits` must be of 2 or more clusters, got 1\. Raise `n_clusters`"):
        InformationLoss()(torch.zeros(4, 1))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"`weight` must be at least 0, got -1"):
        InformationLoss(-1)


def test_it_is_at_least_ten_times_as_fast_as_the_loop():
    logits, times = torch.randn(512, 512), []
    for _ in range(5):
        start = time.perf_counter()
        InformationLoss()(logits)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    by_hand(logits)
    assert time.perf_counter() - start > 10 * min(times)


# The head


def test_the_head_is_batch_norm_dropout_and_a_linear_map():
    head, embeddings = ClusteringHead(6, 4), torch.randn(10, 6)
    norm, dropout, linear = head.layers
    assert isinstance(norm, nn.BatchNorm1d)
    assert dropout.p == 0.6
    standard = (embeddings - embeddings.mean(0)) / (embeddings.var(0, unbiased=False) + norm.eps).sqrt()
    dropout.p = 0
    torch.testing.assert_close(head(embeddings), standard @ linear.weight.T + linear.bias)


def test_the_head_has_32_clusters_unless_told_otherwise():
    assert ClusteringHead(6)(torch.randn(40, 6)).shape == (40, 32)
    assert ClusteringHead(6, 100, dropout=0)(torch.randn(40, 6)).shape == (40, 100)


def test_the_head_can_be_sure_however_many_clusters_there_are():
    head = ClusteringHead(6, 100, dropout=0)
    with torch.no_grad():
        head.layers[2].weight.mul_(100)
    assert head(torch.randn(40, 6)).softmax(dim=1).max(dim=1).values.median() > 0.9


def test_embeddings_that_are_all_equal_have_finite_logits_and_gradients():
    embeddings = torch.ones(8, 6, requires_grad=True)
    loss = InformationLoss()(ClusteringHead(6, 4)(embeddings))
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((0,), "`embedding_size` must be at least 1, got 0"), ((6, 1), "`n_clusters` must be at least 2, got 1")],
)
def test_a_head_without_dimensions_or_with_one_cluster_is_refused(arguments, sentence, untyped):
    with pytest.raises(ValueError, match=sentence):
        ClusteringHead(*arguments)
