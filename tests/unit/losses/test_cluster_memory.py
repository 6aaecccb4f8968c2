"""ClusterMemoryLoss, compared with loops over embeddings, and its memory."""

import math

import pytest
import torch
from pytorch_metric_learning import losses
from torch.nn import functional

from udmlss import PseudoLabels, UDMLSSLoss
from udmlss.losses import ClusterMemoryLoss
from udmlss.types import UsesClusterCenters

K, D, N = 5, 6, 23


def make(k=K, **settings):
    """Return a loss in float64 with centers of any length."""
    loss = ClusterMemoryLoss(D, **settings).double()
    loss.set_centers(3 * torch.randn(k, D))
    return loss


def make_batch():
    """Return embeddings of any length in random order, of which some are unassigned and one cluster is missing."""
    labels = torch.randint(0, K - 1, (N,))
    labels[torch.randperm(N)[:4]] = -1
    return (2 * torch.randn(N, D, dtype=torch.float64)).requires_grad_(), labels


def naive_loss(memory, embeddings, labels, temperature):
    terms = []
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        if label < 0:
            continue
        powers = [torch.exp(embedding @ row / embedding.norm() / temperature) for row in memory]
        terms.append(-torch.log(powers[label] / sum(powers)))
    return sum(terms) / len(terms)


def naive_update(memory, embeddings, labels, momentum, *, hard):
    rows, found = functional.normalize(embeddings.detach()), [row.clone() for row in memory]
    chosen = [(label, row) for label, row in zip(labels.tolist(), rows, strict=True) if label >= 0]
    if hard:
        clusters = sorted({label for label, _ in chosen})
        chosen = [
            (c, min((row for label, row in chosen if label == c), key=lambda row: row @ memory[c])) for c in clusters
        ]
    for label, row in chosen:
        mixed = momentum * found[label] + (1 - momentum) * row
        found[label] = mixed / mixed.norm()
    return torch.stack(found)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_loss_gradient_and_update_equal_loops_over_the_embeddings(momentum, hard):
    loss = make(momentum=momentum, hard=hard, temperature=0.3)
    for _ in range(3):
        embeddings, labels = make_batch()
        before = loss.memory.clone()
        expected = naive_loss(before, embeddings, labels, 0.3)
        (expected_gradient,) = torch.autograd.grad(expected, embeddings)
        value = loss(embeddings, labels)
        value.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(embeddings.grad, expected_gradient)
        torch.testing.assert_close(loss.memory, naive_update(before, embeddings, labels, momentum, hard=hard))


def test_rows_start_at_the_normalized_centers_of_any_number_of_clusters():
    criterion = UDMLSSLoss(losses.MultipleLosses([losses.ContrastiveLoss(), ClusterMemoryLoss(D)]))
    [memory] = [module for module in criterion.modules() if isinstance(module, UsesClusterCenters)]
    for k in (4, 9, 2):
        centers = 3 * torch.randn(k, D)
        criterion.start_round(PseudoLabels(torch.arange(k), centers, torch.ones(k, dtype=torch.long)))
        torch.testing.assert_close(memory.memory, functional.normalize(centers))
        assert criterion(torch.randn(2 * k, D), torch.arange(2 * k) % k).isfinite()


def test_the_memory_changes_in_training_mode_only_and_has_no_gradient():
    loss, (embeddings, labels) = make().eval(), make_batch()
    before = loss.memory.clone()
    value = loss(embeddings, labels)
    assert torch.equal(loss.memory, before)
    assert loss.train()(embeddings, labels) == value
    assert not torch.equal(loss.memory, before)
    assert not list(loss.parameters())
    assert not loss.memory.requires_grad


def test_a_batch_without_clusters_has_no_loss_and_changes_nothing():
    loss = make()
    before, embeddings = loss.memory.clone(), torch.randn(3, D, requires_grad=True)
    value = loss(embeddings, [-1, -1, -1])
    value.backward()
    assert value == 0
    assert not embeddings.grad.any()
    assert torch.equal(loss.memory, before)


def test_is_computed_in_float32_inside_autocast():
    rows, labels = torch.randn(8, D), torch.arange(8) % K
    loss, other = ClusterMemoryLoss(D), ClusterMemoryLoss(D)
    centers = torch.randn(K, D)
    loss.set_centers(centers)
    other.set_centers(centers)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(rows, labels)
    assert value == other(rows, labels)
    assert torch.equal(loss.memory, other.memory)


def test_a_state_of_another_number_of_clusters_is_loaded():
    saved, loss = make(k=7), make(k=3)
    UDMLSSLoss(loss).load_state_dict(UDMLSSLoss(saved).state_dict())
    assert torch.equal(loss.memory, saved.memory)
    with pytest.raises(RuntimeError, match="size mismatch for memory"):
        ClusterMemoryLoss(D + 1).load_state_dict(saved.state_dict())


def test_a_perfect_match_has_the_loss_of_the_closed_form():
    loss = ClusterMemoryLoss(4, temperature=0.5)
    loss.set_centers(torch.eye(4))
    expected = -math.log(math.exp(2) / (math.exp(2) + 3))
    assert loss(torch.eye(4), range(4)).item() == pytest.approx(expected, rel=1e-6)


def test_what_does_not_fit_is_an_error_that_names_the_remedy():
    loss = ClusterMemoryLoss(D)
    with pytest.raises(ValueError, match=r"needs the cluster centers, got None\. Call `start_round\(pseudo_labels\)`"):
        loss(torch.randn(2, D), [0, 1])
    with pytest.raises(ValueError, match=r"needs the cluster centers, got None\. Return centers from the labeler"):
        loss.set_centers(None)
    with pytest.raises(ValueError, match=r"was built for embeddings of 6 dimensions, got 7\. Build it with"):
        loss.set_centers(torch.randn(3, 7))
    loss.set_centers(torch.randn(3, D))
    with pytest.raises(ValueError, match=r"was built for embeddings of 6 dimensions, got 7\. Build it with"):
        loss(torch.randn(2, 7), [0, 1])
    with pytest.raises(ValueError, match=r"`labels` must lie in 0\.\.2, one row of the memory for each, .* got 3\."):
        loss(torch.randn(2, D), [0, 3])
