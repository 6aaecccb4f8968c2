"""UDMLSSLoss with every loss and miner of pytorch-metric-learning."""

import numpy as np
import pml_losses
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pml_losses import LOSSES, MEMORY_LOSSES, MINERS, D, K, build, make, pair_loss
from pytorch_metric_learning import losses, miners
from torch.nn import functional

from udmlss import LossTerms, UDMLSSLoss

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # HistogramLoss

IMAGES_PER_CLUSTER = 4


def make_batch(n_unassigned=0, dtype=torch.float32):
    """Return unit embeddings of K clusters and of unassigned images, in random order, with their labels."""
    labels = torch.cat([torch.arange(K).repeat(IMAGES_PER_CLUSTER), torch.full((n_unassigned,), -1)])
    labels = labels[torch.randperm(len(labels))]
    return functional.normalize(torch.randn(len(labels), D)).to(dtype).requires_grad_(), labels


def sorted_rows(labels):
    """Return the assigned rows, sorted by label."""
    return [row for cluster in range(K) for row in range(len(labels)) if labels[row] == cluster]


def bare_loss(loss, embeddings, labels, miner=None):
    """Return the loss itself on the assigned rows, sorted by label."""
    rows = sorted_rows(labels)
    embeddings, labels = embeddings[rows], labels[rows]
    if isinstance(loss, losses.ManifoldLoss):
        return loss(embeddings, indices_tuple=labels)
    return loss(embeddings, labels) if miner is None else loss(embeddings, labels, miner(embeddings, labels))


# All losses


def test_excluded_classes_exist():
    excluded = pml_losses.ABSTRACT_LOSSES + pml_losses.TWO_VIEW_LOSSES + pml_losses.ORDERED_LOSSES
    assert all(isinstance(getattr(losses, name), type) for name in excluded)
    assert all(isinstance(getattr(miners, name), type) for name in pml_losses.OTHER_MINERS)


@pytest.mark.parametrize("name", [*LOSSES, *MEMORY_LOSSES])
def test_equals_the_bare_loss_and_has_gradients(name):
    embeddings, labels = make_batch()
    criterion = UDMLSSLoss(make(name))
    loss = criterion(embeddings, labels)
    torch.testing.assert_close(loss, bare_loss(make(name), embeddings, labels))
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()
    assert (embeddings.grad != 0).any(dim=1).sum() > len(labels) // 4
    for parameter in criterion.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_masks_unassigned_rows(name):
    embeddings, labels = make_batch(n_unassigned=5)
    assigned = labels >= 0
    loss = UDMLSSLoss(make(name))(embeddings, labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    without = embeddings.detach()[assigned].requires_grad_()
    expected = UDMLSSLoss(make(name))(without, labels[assigned])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[assigned], *torch.autograd.grad(expected, without))
    assert not gradient[~assigned].any()


@pytest.mark.parametrize("name", ["ContrastiveLoss", "ProxyAnchorLoss", "CrossBatchMemory", "ManifoldLoss"])
def test_returns_zero_with_a_zero_gradient_if_all_rows_are_unassigned(name):
    embeddings, _ = make_batch()
    loss = UDMLSSLoss(make(name))(embeddings, torch.full((len(embeddings),), -1))
    loss.backward()
    assert loss == 0
    assert loss.dtype == torch.float32
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("name", LOSSES)
def test_is_invariant_to_the_order_of_rows(name):
    embeddings, labels = make_batch()
    order = torch.randperm(len(labels))
    if name in pml_losses.ORDERED_LOSSES:  # only the order of whole clusters may change
        order = torch.tensor(sorted_rows(labels)).view(K, IMAGES_PER_CLUSTER).flip(0).flatten()
    expected = UDMLSSLoss(make(name))(embeddings, labels)
    torch.testing.assert_close(UDMLSSLoss(make(name))(embeddings[order], labels[order]), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_runs_in_float32_under_autocast(name):
    embeddings, labels = make_batch(dtype=torch.bfloat16)
    criterion = UDMLSSLoss(make(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(embeddings, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {tensor.dtype for tensor in criterion.parameters()} <= {torch.float32}
    assert {tensor.dtype for tensor in criterion.buffers()} <= {torch.float32, torch.int64}
    torch.testing.assert_close(loss, bare_loss(make(name), embeddings.float(), labels))


@given(st.lists(st.integers(-1, K - 1), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_masks_any_labels(found):
    labels = torch.tensor(found)
    embeddings = torch.randn(len(labels), D, requires_grad=True)
    loss = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5))(embeddings, labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    rows = sorted_rows(labels)
    expected = losses.MultiSimilarityLoss(2, 40, 0.5)(embeddings[rows], labels[rows]) if rows else torch.tensor(0.0)
    torch.testing.assert_close(loss, expected)
    assert gradient.isfinite().all()
    assert not gradient[labels < 0].any()


@pytest.mark.parametrize("convert", [torch.Tensor.int, torch.Tensor.numpy, torch.Tensor.tolist])
def test_accepts_labels_as_tensors_arrays_and_lists(convert):
    embeddings, labels = make_batch(n_unassigned=2)
    criterion = UDMLSSLoss(pair_loss())
    assert criterion(embeddings, convert(labels)) == criterion(embeddings, labels)


def test_accepts_a_callable():
    embeddings, labels = make_batch(n_unassigned=3)
    criterion = UDMLSSLoss(lambda rows, clusters: (rows.sum(1) * clusters).sum())
    expected = sum(embeddings[row].sum() * labels[row] for row in range(len(labels)) if labels[row] >= 0)
    torch.testing.assert_close(criterion(embeddings, labels), expected)
    assert not list(criterion.parameters())


# Errors


@pytest.mark.parametrize("name", pml_losses.TWO_VIEW_LOSSES)
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: losses.MultipleLosses([pair_loss(), loss])])
def test_rejects_losses_of_two_views(name, wrap):
    with pytest.raises(TypeError, match=rf"`metric_loss` must learn from labels, got {name}: it compares two views"):
        UDMLSSLoss(wrap(build(getattr(losses, name))))


def test_rejects_manifold_loss_inside_another_loss():
    with pytest.raises(TypeError, match="got ManifoldLoss: it expects cluster labels instead of mined pairs"):
        UDMLSSLoss(losses.MultipleLosses([pair_loss(), make("ManifoldLoss")]))


@pytest.mark.parametrize("value", [losses.ContrastiveLoss, 0.1, "ContrastiveLoss"])
def test_rejects_what_is_not_a_loss_object(value, unchecked_types):
    message = r"`metric_loss` must be a loss object \(embeddings, labels\) -> scalar, got .*\. Pass an instance, such"
    with pytest.raises(TypeError, match=message):
        UDMLSSLoss(value)


@pytest.mark.parametrize("value", [miners.MultiSimilarityMiner, 0.1])
def test_rejects_what_is_not_a_miner_object(value, unchecked_types):
    with pytest.raises(TypeError, match=r"`miner` must be a miner object, got .*\. Pass MultiSimilarityMiner\(0.1\)"):
        UDMLSSLoss(pair_loss(), miner=value)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(4), TypeError, "`labels` must be integers"),
        ([0.5] * 4, TypeError, "`labels` must be integers"),
        ([0, 0, 1], ValueError, r"must have shape \(4,\), one label per item, got shape \(3,\)"),
        (torch.zeros(4, 1, dtype=torch.int64), ValueError, r"got shape \(4, 1\)"),
    ],
)
def test_rejects_invalid_labels(labels, error, message, unchecked_types):
    with pytest.raises(error, match=message):
        UDMLSSLoss(pair_loss())(torch.eye(4), labels)


# Miners


@pytest.mark.parametrize("name", MINERS)
def test_mines_only_assigned_rows(name):
    embeddings, labels = make_batch(n_unassigned=5)
    criterion, miner = UDMLSSLoss(pair_loss(), miner=build(MINERS[name])), build(MINERS[name])
    torch.manual_seed(2)  # some miners sample
    loss = criterion(embeddings, labels)
    torch.manual_seed(2)
    torch.testing.assert_close(loss, bare_loss(pair_loss(), embeddings, labels, miner))
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert not gradient[labels < 0].any()


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("CrossBatchMemory", "ManifoldLoss")])
def test_passes_mined_pairs_or_raises_an_error_that_names_the_loss(name):
    embeddings, labels = make_batch()
    criterion = UDMLSSLoss(make(name), miner=miners.BatchHardMiner())
    try:
        expected = bare_loss(make(name), embeddings, labels, miners.BatchHardMiner())
    except ValueError:
        message = rf"{name} does not accept mined pairs, got `miner=BatchHardMiner`\. Remove `miner`\."
        with pytest.raises(ValueError, match=message):
            criterion(embeddings, labels)
    else:
        torch.testing.assert_close(criterion(embeddings, labels), expected)


def test_some_losses_do_not_accept_mined_pairs():
    for name in ("InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss"):
        with pytest.raises(ValueError, match=f"{name} does not accept mined pairs"):
            UDMLSSLoss(make(name), miner=miners.MultiSimilarityMiner(0.1))(*make_batch())


def test_rejects_a_miner_for_cross_batch_memory_and_manifold_loss():
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 8)
    for loss in (memory, losses.MultipleLosses([losses.SupConLoss(), memory])):
        message = "must mine pairs of its memory, not of the batch, got `miner=BatchHardMiner`. Pass the miner to Cross"
        with pytest.raises(ValueError, match=message):
            UDMLSSLoss(loss, miner=miners.BatchHardMiner())
    with pytest.raises(ValueError, match=r"ManifoldLoss does not accept mined pairs, got `miner=BatchHardMiner`\."):
        UDMLSSLoss(make("ManifoldLoss"), miner=miners.BatchHardMiner())


def test_does_not_change_other_errors_of_the_loss():
    def broken(embeddings, labels, indices):
        raise ValueError("something else")

    with pytest.raises(ValueError, match=r"^something else$"):
        UDMLSSLoss(broken, miner=miners.MultiSimilarityMiner(0.1))(*make_batch())


# Rotation loss


def cross_entropy(logits, rotations):
    return -logits.float().softmax(dim=1)[range(len(logits)), rotations].log().mean().item()


@pytest.mark.parametrize("weight", [0, 0.1, 3, np.float32(0.5)])
def test_total_is_the_metric_loss_plus_the_weighted_cross_entropy_of_rotations(weight):
    embeddings, labels = make_batch(n_unassigned=2)
    logits, rotations = torch.randn(8, 4, requires_grad=True), torch.randint(4, (8,))
    criterion = UDMLSSLoss(pair_loss(), rotation_weight=weight)
    terms = criterion.terms(embeddings, labels, logits, rotations)
    metric, rotation = bare_loss(pair_loss(), embeddings, labels).item(), cross_entropy(logits, rotations)
    assert isinstance(terms, LossTerms)
    assert terms.metric.item() == pytest.approx(metric)
    assert terms.rotation.item() == pytest.approx(rotation, rel=1e-5)
    assert terms.total.item() == pytest.approx(metric + float(weight) * rotation, rel=1e-5)
    assert torch.equal(criterion(embeddings, labels, rotation_logits=logits, rotations=rotations), terms.total)
    terms.total.backward()
    assert bool(logits.grad.any()) == (weight > 0)


def test_rotation_loss_is_zero_without_rotations():
    embeddings, labels = make_batch()
    terms = UDMLSSLoss(pair_loss(), rotation_weight=5).terms(embeddings, labels)
    assert terms.rotation == 0
    assert terms.total == terms.metric
    assert UDMLSSLoss(pair_loss()).rotation_weight == 0.1  # the published value


def test_rotation_loss_has_a_gradient_if_all_rows_are_unassigned():
    logits, rotations = torch.randn(8, 4, requires_grad=True), torch.randint(4, (8,))
    loss = UDMLSSLoss(pair_loss(), rotation_weight=2)(make_batch()[0], [-1] * 16, logits, rotations)
    loss.backward()
    assert loss.item() == pytest.approx(2 * cross_entropy(logits, rotations), rel=1e-5)
    assert logits.grad.any()


def test_rotation_loss_is_computed_in_float32():
    embeddings, labels = make_batch()
    logits, rotations = torch.randn(8, 4).bfloat16(), torch.randint(4, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = UDMLSSLoss(pair_loss()).terms(embeddings, labels, logits, rotations)
    assert terms.rotation.dtype == terms.total.dtype == torch.float32
    assert terms.rotation.item() == pytest.approx(cross_entropy(logits, rotations), rel=1e-5)


def test_rotations_may_be_a_list_and_empty():
    batch, logits, loss = make_batch(), torch.randn(3, 4, requires_grad=True), UDMLSSLoss(pair_loss())
    assert loss(*batch, logits, [0, 2, 1]) == loss(*batch, logits, torch.tensor([0, 2, 1]))
    assert loss.terms(*batch, logits[:0], []).rotation == 0


@pytest.mark.parametrize(
    ("logits", "rotations", "error", "message"),
    [
        (torch.zeros(3, 5), [0, 1, 2], ValueError, r"`rotation_logits` must be of shape \(r, 4\), got shape \(3, 5\)"),
        (torch.zeros(3, 4), [0, 1], ValueError, r"`rotations` must have shape \(3,\)"),
        (torch.zeros(3, 4), torch.zeros(3), TypeError, r"`rotations` must "),
    ],
)
def test_rejects_invalid_rotations(logits, rotations, error, message, unchecked_types):
    with pytest.raises(error, match=message):
        UDMLSSLoss(pair_loss())(*make_batch(), logits, rotations)


@pytest.mark.parametrize("passed", [{"rotation_logits": torch.zeros(4, 4)}, {"rotations": torch.arange(4)}])
def test_rejects_rotation_logits_or_rotations_alone(passed):
    [name] = passed
    with pytest.raises(ValueError, match=rf"must be passed together, got `{name}` alone\. Pass both or neither\."):
        UDMLSSLoss(pair_loss())(*make_batch(), **passed)
