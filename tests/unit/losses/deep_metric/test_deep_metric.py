"""Properties that all losses of Deep_Metric share."""

import copy
import inspect
import pickle
from itertools import islice

import pytest
import torch
from deep_metric_definitions import DEFINITIONS
from deep_metric_losses import BATCHES, LOSSES, distances, overlapping_clusters, similarities
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import seconds
from pytorch_metric_learning import losses, miners

from udmlss import PseudoLabels, UDMLSSLoss
from udmlss.losses import deep_metric

SAMPLED = "distance_weighted_margin"  # its triplets depend on the order of the rows
NEED_ONLY_PAIRS = ("contrastive", "binomial_deviance", "lifted_structure")  # positives or negatives alone suffice
SMOOTH = ("equal sizes", "more rows than NCA uses", "unequal sizes", "some single rows", "different lengths")


def test_all_exported_losses_are_tested():
    functions = [name for name in deep_metric.__all__ if inspect.isfunction(getattr(deep_metric, name))]
    assert {*functions, "NearestPositiveLoss", "ClusterNCALoss"} == {name.split("(")[0] for name in LOSSES}


# Definitions


@pytest.mark.parametrize("name", DEFINITIONS)
def test_equals_the_definition(name):
    for batch, make_batch in BATCHES.items():
        if (name, batch) == (SAMPLED, "some zero vectors"):
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
        ("contrastive", {"threshold": 0.1}),
        ("binomial_deviance", {"positive_scale": 3, "negative_scale": 10, "base": 0.2}),
        ("lifted_structure", {"positive_scale": 3, "negative_scale": 10}),
        ("multi_similarity", {"positive_scale": 3, "negative_scale": 10, "base": 0.2, "epsilon": 9}),
        ("hard_mining", {"epsilon": 0.4}),
        ("nca", {"scale": 3, "n_nearest": 4}),
        ("batch_all", {"margin": 1}),
        ("batch_hard", {"margin": 1}),
        ("distance_weighted_margin", {"margin": 0.1, "beta": 1.0, "cutoff": 0.7, "seed": 3}),
        ("NearestPositiveLoss", {"margin": 0}),
        ("NearestPositiveLoss", {"margin": 3}),
    ],
)
def test_equals_the_definition_with_other_settings(name, chosen):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    expected = DEFINITIONS[name](embeddings, labels, **chosen)
    value = getattr(deep_metric, name)(**chosen)(embeddings, labels).item()
    assert value == pytest.approx(expected, abs=1e-6)
    assert value != pytest.approx(LOSSES[name]()(embeddings, labels).item())


# Gradients


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    for batch in SMOOTH:
        embeddings, labels = BATCHES[batch]()
        inputs = embeddings.requires_grad_()
        assert torch.autograd.gradcheck(lambda rows, y=labels: LOSSES[name]()(rows, y), inputs, fast_mode=True), batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_scalars_of_the_dtype(name, dtype):
    for batch, make_batch in BATCHES.items():
        embeddings, labels = make_batch()
        embeddings = embeddings.to(dtype).requires_grad_()
        loss = LOSSES[name]()(embeddings, labels)
        loss.backward()
        assert loss.shape == (), batch
        assert loss.dtype == dtype, batch
        assert loss.isfinite(), batch
        assert embeddings.grad.isfinite().all(), batch


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_step_lowers_the_loss(name):
    embeddings, labels = overlapping_clusters([4, 4, 4], noise=0.6)
    loss = LOSSES[name]()(embeddings.requires_grad_(), labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert gradient.any()
    assert LOSSES[name]()((embeddings - 1e-4 * gradient).detach(), labels) < loss


# Invariances


@pytest.mark.parametrize("name", [name for name in LOSSES if name != SAMPLED])
def test_is_invariant_to_the_order_of_rows_and_the_numbers_of_clusters(name):
    for batch in ("unequal sizes", "some single rows", "duplicates", "mixed clusters"):
        embeddings, labels = BATCHES[batch]()
        expected = LOSSES[name]()(embeddings, labels)
        order, numbers = torch.randperm(len(labels)), torch.randperm(30)
        torch.testing.assert_close(LOSSES[name]()(embeddings[order], labels[order]), expected)
        torch.testing.assert_close(LOSSES[name]()(embeddings, numbers[labels]), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_is_invariant_to_the_lengths_of_embeddings(name):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    scaled = embeddings * (1 + torch.rand(len(labels), 1))
    torch.testing.assert_close(LOSSES[name]()(scaled, labels), LOSSES[name]()(embeddings, labels))


# In UDMLSSLoss and MultipleLosses


@pytest.mark.parametrize("name", LOSSES)
def test_unassigned_rows_are_masked(name):
    embeddings, labels = overlapping_clusters([4, 4, 4, 6])
    labels[labels == 3] = -1
    embeddings = embeddings.float().requires_grad_()
    loss = UDMLSSLoss(LOSSES[name]())(embeddings, labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assigned = labels.argsort(stable=True)[6:]
    torch.testing.assert_close(loss, LOSSES[name]()(embeddings[assigned], labels[assigned]))
    assert gradient[labels >= 0].any()
    assert not gradient[labels < 0].any()


@pytest.mark.parametrize("name", LOSSES)
def test_is_zero_with_a_zero_gradient_without_triplets(name):
    for batch in ("one row",) if name in NEED_ONLY_PAIRS else ("one row", "only single rows", "one cluster"):
        embeddings, labels = BATCHES[batch]()
        loss = LOSSES[name]()(embeddings.requires_grad_(), labels)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-12), batch
        assert embeddings.grad.abs().max() < 1e-12, batch


@pytest.mark.parametrize("name", LOSSES)
def test_new_rounds_and_autocast_do_not_change_the_loss(name):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    embeddings = embeddings.float()
    criterion, untouched = UDMLSSLoss(LOSSES[name]()), UDMLSSLoss(LOSSES[name]())
    criterion.start_round(PseudoLabels.from_labels(labels, embeddings))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert criterion(embeddings, labels) == untouched(embeddings, labels)
    assert not list(criterion.parameters())


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "batch_all"])  # which is a loss of PML
def test_rejects_mined_pairs(name):
    loss = LOSSES[name]()
    criterion = UDMLSSLoss(loss, miner=miners.BatchHardMiner())
    with pytest.raises(ValueError, match=rf"{type(loss).__name__} does not accept mined pairs, got `miner=BatchHard"):
        criterion(*overlapping_clusters([4, 4]))


@pytest.mark.parametrize("name", LOSSES)
def test_can_be_part_of_multiple_losses(name):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    both = losses.MultipleLosses([LOSSES[name](), losses.SupConLoss()], weights=[2, 1])
    expected = 2 * LOSSES[name]()(embeddings, labels) + losses.SupConLoss()(embeddings, labels)
    torch.testing.assert_close(both(embeddings, labels), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_can_be_copied_and_pickled_and_leaves_the_random_state_of_torch(name):
    embeddings, labels = overlapping_clusters([4, 4, 4])
    loss, before = LOSSES[name](), torch.get_rng_state()
    copies = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]  # noqa: S301 (the bytes are those of this test)
    expected = loss(embeddings, labels)
    assert all(other(embeddings, labels) == expected for other in copies)
    assert torch.equal(torch.get_rng_state(), before)


# Time


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    return overlapping_clusters([4] * 64, d=512, noise=0.05)


def loop_seconds(anchors):
    """Return the time of a loop over all anchors, estimated from an eighth of them."""
    return 8 * seconds(lambda: list(islice(anchors, 32)), repeat=1)


@pytest.fixture(scope="module")
def pair_loop_seconds(large):
    """Return the time of a loop over all pairs that only computes their similarities."""
    return loop_seconds(similarities(*large))


# The triplets of distance_weighted_margin are sampled by PML and few enough for a loop.
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (SAMPLED, "batch_all")])
def test_is_ten_times_as_fast_as_a_loop_over_pairs(name, large, pair_loop_seconds):
    embeddings, labels = large
    loss, embeddings = LOSSES[name](), embeddings.float()
    assert 10 * seconds(lambda: loss(embeddings, labels), repeat=4) < pair_loop_seconds


def test_batch_all_is_ten_times_as_fast_as_a_loop_over_triplets(large):
    embeddings, labels = large
    loop = (sum(max(0, a - b + 0.2) for a in p for b in n) for p, n in distances(*large))
    loss, embeddings = deep_metric.batch_all(), embeddings.float()
    assert 10 * seconds(lambda: loss(embeddings, labels), repeat=3) < loop_seconds(loop)
