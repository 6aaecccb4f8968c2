"""Every loss of the family equals its definition, read row by row, and goes through the same properties."""

import copy
import inspect
import math
import pickle
import timeit
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners
from torch.nn import functional

from udmlss import PseudoLabels, UDMLSSLoss
from udmlss.losses import ClusterNCALoss, NearestPositiveLoss
from udmlss.losses.deep_metric.mined_loss import SeededMiner

FUNCTIONS = {
    name: function
    for name, function in vars(deep_metric).items()
    if inspect.isfunction(function) and function.__module__ == deep_metric.__name__ and not name.startswith("_")
}
FAMILY = {
    **FUNCTIONS,
    "lifted_structure(mined=True)": lambda: deep_metric.lifted_structure(mined=True),
    "NearestPositiveLoss": NearestPositiveLoss,
    "ClusterNCALoss": ClusterNCALoss,
}
DRAWN = "distance_weighted_margin"  # which triplets it draws depends on the order of the rows
PULLING = ("contrastive", "binomial_deviance", "lifted_structure")  # learn from positives where there is no negative


# The definitions, one anchor after the other


def cosines_of(embeddings, labels):
    """Yield the cosines of each anchor to its positives and to its negatives."""
    rows = [row / row.norm().clamp(min=1e-12) for row in embeddings]
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        yield (
            [float(rows[i] @ rows[j]) for j in others if labels[j] == labels[i]],
            [float(rows[i] @ rows[j]) for j in others if labels[j] != labels[i]],
        )


def distances_of(embeddings, labels):
    """Yield the Euclidean distances of each anchor to its positives and to its negatives, at unit length."""
    rows = [row / row.norm().clamp(min=1e-12) for row in embeddings]
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        yield (
            [float((rows[i] - rows[j]).norm()) for j in others if labels[j] == labels[i]],
            [float((rows[i] - rows[j]).norm()) for j in others if labels[j] != labels[i]],
        )


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def log_sum_exp(values):
    return math.log(sum(math.exp(value) for value in values)) if values else 0.0


def mined(positives, negatives, epsilon=0.1):
    if not positives or not negatives:
        return [], []
    return (
        [s for s in positives if s - epsilon < max(negatives)],
        [s for s in negatives if s + epsilon > min(positives)],
    )


def naive_contrastive(embeddings, labels):
    return mean(sum(1 - s for s in p) + sum(s for s in n if s > 0.5) for p, n in cosines_of(embeddings, labels))


def naive_binomial_deviance(embeddings, labels):
    return mean(
        mean(math.log(1 + math.exp(-2 * (s - 0.5))) for s in p)
        + mean(math.log(1 + math.exp(40 * (s - 0.5))) for s in n)
        for p, n in cosines_of(embeddings, labels)
    )


def lifted(positives, negatives):
    return 2 / 2 * log_sum_exp([-2 * s for s in positives]) + 2 / 40 * log_sum_exp([40 * s for s in negatives])


def naive_lifted_structure(embeddings, labels):
    return mean(lifted(p, n) for p, n in cosines_of(embeddings, labels))


def naive_mined_lifted_structure(embeddings, labels):
    return mean(lifted(*mined(p, n)) for p, n in cosines_of(embeddings, labels))


def naive_multi_similarity(embeddings, labels):
    total = 0
    for p, n in cosines_of(embeddings, labels):
        positives, negatives = mined(p, n)
        total += math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in positives)) / 2
        total += math.log(1 + sum(math.exp(40 * (s - 0.5)) for s in negatives)) / 40
    return total / len(labels)


def naive_hard_mining(embeddings, labels):
    total = 0
    for p, n in cosines_of(embeddings, labels):
        positives, negatives = mined(p, n)
        total += mean(1 - s for s in positives) + mean(negatives)
    return total / len(labels)


def naive_nca(embeddings, labels, scale=16, n_nearest=32):
    total = 0
    for p, n in cosines_of(embeddings, labels):
        if not p:
            continue
        last = sorted(p + n, reverse=True)[:n_nearest][-1]
        positives = [s for s in p if s >= last] or [max(p)]
        negatives = [s for s in n if s >= last]
        own, others = (sum(math.exp(scale * s) for s in side) for side in (positives, negatives))
        total -= math.log(own / (own + others))
    return total / len(labels)


def naive_batch_all(embeddings, labels):
    return mean(max(0, a - b + 0.2) for p, n in distances_of(embeddings, labels) for a in p for b in n)


def naive_batch_hard(embeddings, labels):
    return mean(max(0, max(p) - min(n) + 0.2) for p, n in distances_of(embeddings, labels) if p and n)


def naive_distance_weighted_margin(embeddings, labels):
    """Return the margin loss of the triplets that a miner of the same seed draws."""
    miner = SeededMiner(miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4), seed=0)
    rows = functional.normalize(embeddings)
    terms = []
    for anchor, positive, negative in zip(*map(torch.Tensor.tolist, miner(embeddings, labels)), strict=True):
        terms.append(max(0, float((rows[anchor] - rows[positive]).norm()) - 1.2 + 0.2))
        terms.append(max(0, 1.2 - float((rows[anchor] - rows[negative]).norm()) + 0.2))
    return mean(term for term in terms if term > 0)


ORACLES = {
    "contrastive": naive_contrastive,
    "binomial_deviance": naive_binomial_deviance,
    "lifted_structure": naive_lifted_structure,
    "lifted_structure(mined=True)": naive_mined_lifted_structure,
    "multi_similarity": naive_multi_similarity,
    "hard_mining": naive_hard_mining,
    "nca": naive_nca,
    "batch_all": naive_batch_all,
    "batch_hard": naive_batch_hard,
    "distance_weighted_margin": naive_distance_weighted_margin,
}


# Batches


def around_centres(sizes, d=6, noise=0.4):
    """Return embeddings in float64 of clusters of the given sizes, which overlap, in mixed order."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes))]
    centres = functional.normalize(torch.randn(len(sizes), d, dtype=torch.float64))
    return functional.normalize(centres[labels] + noise * torch.randn(len(labels), d, dtype=torch.float64)), labels


def duplicated():
    embeddings, labels = around_centres([3, 3])
    return embeddings.repeat(2, 1), labels.repeat(2)


def tight():
    return around_centres([4, 4, 4], d=32, noise=0.01)


def of_any_length():
    embeddings, labels = around_centres([4, 4])
    return embeddings * 100 * torch.rand(8, 1, dtype=torch.float64), labels


BATCHES = {
    "as many of each": lambda: around_centres([4, 4, 4, 4]),
    "more than the nearest of NCA": lambda: around_centres([5] * 10, noise=1.5),
    "unequal sizes": lambda: around_centres([2, 5, 3]),
    "some alone": lambda: around_centres([1, 4, 1, 3]),
    "two clusters": lambda: around_centres([3, 3]),
    "tight clusters": tight,
    "mixed clusters": lambda: around_centres([4, 4, 4], noise=5),
    "one dimension": lambda: around_centres([3, 3], d=1),
    "two dimensions": lambda: around_centres([3, 3, 3], d=2),
    "of any length": of_any_length,
    "one cluster": lambda: around_centres([5]),
    "all alone": lambda: around_centres([1] * 6),
    "a single row": lambda: around_centres([1]),
    "duplicates": duplicated,
    "duplicates of other clusters": lambda: (duplicated()[0], torch.arange(4).repeat(3)),
    "all equal": lambda: (torch.ones(6, 4, dtype=torch.float64), torch.arange(2).repeat(3)),
    "zero vectors": lambda: (torch.zeros(6, 4, dtype=torch.float64), torch.arange(2).repeat(3)),
    "some zero vectors": lambda: (
        around_centres([3, 3])[0] * (torch.arange(6) > 1)[:, None],
        torch.arange(2).repeat(3),
    ),
}
ONCE_DIFFERENTIABLE = (
    "as many of each",
    "more than the nearest of NCA",
    "unequal sizes",
    "some alone",
    "of any length",
)


# The value


def test_every_function_has_a_definition_to_agree_with():
    assert FUNCTIONS.keys() <= ORACLES.keys() <= FAMILY.keys()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ORACLES)
def test_the_loss_is_the_one_defined(name, batch):
    if (name, batch) == (DRAWN, "some zero vectors"):
        pytest.skip("distances of just beta - m, of which rounding says whether they count")
    embeddings, labels = BATCHES[batch]()
    expected = ORACLES[name](embeddings, labels)
    assert FAMILY[name]()(embeddings, labels).item() == pytest.approx(expected, abs=1e-6, rel=1e-6)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_loss_is_the_one_defined_for_any_labels(labels, d, seed):
    embeddings = torch.randn(len(labels), d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for name, oracle in ORACLES.items():
        expected = oracle(embeddings, torch.tensor(labels))
        found = FAMILY[name]()(embeddings, torch.tensor(labels)).item()
        assert found == pytest.approx(expected, abs=1e-6, rel=1e-6), name


@pytest.mark.parametrize("name", ["multi_similarity", "hard_mining", "lifted_structure(mined=True)"])
def test_a_single_mined_pair_of_each_kind_counts(name):
    degrees, labels = torch.tensor([-30.0, 0, -60, 65, 90], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    embeddings = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    assert [len(found) for found in miners.MultiSimilarityMiner(0.1)(embeddings, labels)] == [1, 1, 1, 1]
    found = FAMILY[name]()(embeddings, labels).item()
    assert found == pytest.approx(ORACLES[name](embeddings, labels), abs=1e-9)
    assert found != 0


def test_settings_other_than_the_released_ones_are_taken():
    embeddings, labels = around_centres([4, 4, 4])
    pairs = list(cosines_of(embeddings, labels))
    chosen = {"positive_scale": 3, "negative_scale": 10}
    expected = {
        deep_metric.contrastive(threshold=0.1): [
            sum(1 - s for s in p) + sum(s for s in n if s > 0.1) for p, n in pairs
        ],
        deep_metric.lifted_structure(**chosen): [
            2 / 3 * log_sum_exp([-3 * s for s in p]) + 2 / 10 * log_sum_exp([10 * s for s in n]) for p, n in pairs
        ],
        deep_metric.binomial_deviance(**chosen, base=0.2): [
            mean(math.log(1 + math.exp(-3 * (s - 0.2))) for s in p)
            + mean(math.log(1 + math.exp(10 * (s - 0.2))) for s in n)
            for p, n in pairs
        ],
        deep_metric.hard_mining(epsilon=0.4): [
            mean(1 - s for s in mined(p, n, 0.4)[0]) + mean(mined(p, n, 0.4)[1]) for p, n in pairs
        ],
        deep_metric.nca(scale=3, n_nearest=4): [naive_nca(embeddings, labels, scale=3, n_nearest=4)],
        deep_metric.batch_hard(margin=1): [max(0, max(p) - min(n) + 1) for p, n in distances_of(embeddings, labels)],
        deep_metric.batch_all(margin=1): [
            max(0, a - b + 1) for p, n in distances_of(embeddings, labels) for a in p for b in n
        ],
        deep_metric.multi_similarity(**chosen, base=0.2, epsilon=9): [
            math.log(1 + sum(math.exp(-3 * (s - 0.2)) for s in p)) / 3
            + math.log(1 + sum(math.exp(10 * (s - 0.2)) for s in n)) / 10
            for p, n in pairs
        ],
    }
    for loss, terms in expected.items():
        assert loss(embeddings, labels).item() == pytest.approx(mean(terms), abs=1e-9)


def test_where_the_nearest_are_the_whole_batch_nca_is_that_of_pytorch_metric_learning():
    embeddings, labels = around_centres([4, 3, 5])
    expected = losses.NCALoss(softmax_scale=16, distance=distances.CosineSimilarity())(embeddings, labels)
    torch.testing.assert_close(deep_metric.nca(n_nearest=11)(embeddings, labels), expected)


def test_the_released_multi_similarity_loss_is_the_one_of_the_recipe():
    embeddings, labels = around_centres([4, 4, 4])
    recipe = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    assert UDMLSSLoss(deep_metric.multi_similarity())(embeddings, labels) == recipe(embeddings, labels)


# The gradient


@pytest.mark.parametrize("batch", ONCE_DIFFERENTIABLE)
@pytest.mark.parametrize("name", FAMILY)
def test_the_gradient_is_that_of_the_value(name, batch):
    embeddings, labels = BATCHES[batch]()
    assert torch.autograd.gradcheck(
        lambda rows: FAMILY[name]()(rows, labels), embeddings.requires_grad_(), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FAMILY)
def test_value_and_gradient_are_finite_whatever_the_batch_and_keep_its_type(name, batch, dtype):
    embeddings, labels = BATCHES[batch]()
    embeddings = embeddings.to(dtype).requires_grad_()
    loss = FAMILY[name]()(embeddings, labels)
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == dtype
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_against_the_gradient_lowers_the_loss(name):
    embeddings, labels = around_centres([4, 4, 4], noise=0.6)
    loss = FAMILY[name]()(embeddings.requires_grad_(), labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert gradient.any()
    assert FAMILY[name]()((embeddings - 1e-4 * gradient).detach(), labels) < loss


# What makes no difference


@pytest.mark.parametrize("name", [name for name in FAMILY if name != DRAWN])
@pytest.mark.parametrize("batch", ["unequal sizes", "some alone", "duplicates", "mixed clusters"])
def test_the_order_of_the_rows_and_the_names_of_the_clusters_make_no_difference(name, batch):
    embeddings, labels = BATCHES[batch]()
    expected = FAMILY[name]()(embeddings, labels)
    order, names = torch.randperm(len(labels)), torch.randperm(30)
    torch.testing.assert_close(FAMILY[name]()(embeddings[order], labels[order]), expected)
    torch.testing.assert_close(FAMILY[name]()(embeddings, names[labels]), expected)


@pytest.mark.parametrize("name", FAMILY)
def test_the_lengths_of_the_embeddings_make_no_difference(name):
    embeddings, labels = around_centres([4, 4, 4])
    longer = embeddings * (1 + torch.rand(len(labels), 1))
    torch.testing.assert_close(FAMILY[name]()(longer, labels), FAMILY[name]()(embeddings, labels))


# Inside UDMLSSLoss


@pytest.mark.parametrize("name", FAMILY)
def test_rows_left_out_change_nothing_and_get_no_gradient(name):
    embeddings, labels = around_centres([4, 4, 4, 6])
    labels[labels == 3] = -1
    embeddings = embeddings.float().requires_grad_()
    loss = UDMLSSLoss(FAMILY[name]())(embeddings, labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    kept = labels.argsort(stable=True)[6:]
    torch.testing.assert_close(loss, FAMILY[name]()(embeddings[kept], labels[kept]))
    assert gradient[labels >= 0].any()
    assert not gradient[labels < 0].any()


@pytest.mark.parametrize("name", FAMILY)
def test_nothing_but_left_out_is_a_zero_loss_with_a_gradient(name):
    embeddings = torch.randn(6, 4, requires_grad=True)
    loss = UDMLSSLoss(FAMILY[name]())(embeddings, torch.full((6,), -1))
    loss.backward()
    assert loss == 0
    assert not embeddings.grad.any()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("batch", ["all alone", "a single row", "one cluster"])
def test_where_there_is_no_pair_to_learn_from_the_loss_is_zero_with_a_gradient(name, batch):
    if batch == "one cluster" and name in PULLING:
        pytest.skip("pulls positives together without negatives, too")
    if batch == "all alone" and name in PULLING:
        pytest.skip("pushes negatives apart without positives, too")
    embeddings, labels = BATCHES[batch]()
    loss = FAMILY[name]()(embeddings.requires_grad_(), labels)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert embeddings.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", FAMILY)
def test_a_new_round_of_any_clusters_and_autocast_leave_the_loss_as_it_is(name):
    embeddings, labels = around_centres([4, 4, 4])
    embeddings = embeddings.float()
    criterion, untouched = UDMLSSLoss(FAMILY[name]()), UDMLSSLoss(FAMILY[name]())
    criterion.start_round(PseudoLabels(labels, embeddings[:3], labels.bincount()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert criterion(embeddings, labels) == untouched(embeddings, labels)
    assert not list(criterion.parameters())


@pytest.mark.parametrize("name", FAMILY)
def test_a_miner_beside_the_one_inside_is_refused(name):
    loss = FAMILY[name]()
    if isinstance(loss, losses.TripletMarginLoss):
        pytest.skip("is PML's own loss and takes a miner")
    criterion = UDMLSSLoss(loss, miner=miners.BatchHardMiner())
    with pytest.raises(ValueError, match=rf"{type(loss).__name__} takes no mined pairs, got `miner=Batch.*Leave"):
        criterion(*around_centres([4, 4]))


@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_goes_into_several_at_once(name):
    embeddings, labels = around_centres([4, 4, 4])
    both = losses.MultipleLosses([FAMILY[name](), losses.SupConLoss()], weights=[2, 1])
    expected = 2 * FAMILY[name]()(embeddings, labels) + losses.SupConLoss()(embeddings, labels)
    torch.testing.assert_close(both(embeddings, labels), expected)


@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_is_copied_and_stored_as_any_module(name):
    embeddings, labels = around_centres([4, 4, 4])
    loss = FAMILY[name]()
    copies = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]  # noqa: S301 (our own bytes)
    expected = loss(embeddings, labels)
    assert all(other(embeddings, labels) == expected for other in copies)


@pytest.mark.parametrize("name", FAMILY)
def test_torchs_random_numbers_are_left_as_they_are(name):
    embeddings, labels = around_centres([4, 4])
    before = torch.get_rng_state()
    FAMILY[name]()(embeddings, labels)
    assert torch.equal(torch.get_rng_state(), before)


# The time


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    return around_centres([4] * 128, d=512, noise=0.05)


def seconds_of_a_loop(over):
    """Return what a loop over all anchors takes, as eight times what it takes for an eighth of them."""
    return 8 * timeit.timeit(lambda: list(islice(over, 64)), number=1)


@pytest.fixture(scope="module")
def seconds_for_pairs(large):
    """Return what a loop takes for the cosine of each pair alone, before it makes anything of them."""
    return seconds_of_a_loop(cosines_of(*large))


def seconds(name, embeddings, labels):
    loss, embeddings = FAMILY[name](), embeddings.float()
    return min(timeit.repeat(lambda: loss(embeddings, labels), number=1, repeat=4))


# Not the one whose triplets are few even for a loop, and are drawn by PML.
@pytest.mark.parametrize("name", [name for name in FAMILY if name not in (DRAWN, "batch_all")])
def test_a_large_batch_takes_a_tenth_of_the_time_of_a_loop_over_its_pairs(name, large, seconds_for_pairs):
    assert 10 * seconds(name, *large) < seconds_for_pairs


def test_all_triplets_of_a_large_batch_take_a_tenth_of_the_time_of_a_loop(large):
    loop = (mean(max(0, a - b + 0.2) for a in p for b in n) for p, n in distances_of(*large))
    assert 10 * seconds("batch_all", *large) < seconds_of_a_loop(loop)


# What is refused


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: deep_metric.contrastive(threshold=-0.1), "`threshold` must be at least 0, got -0.1"),
        (lambda: deep_metric.binomial_deviance(positive_scale=0), "`positive_scale` must be above 0, got 0"),
        (lambda: deep_metric.lifted_structure(negative_scale=-1), "`negative_scale` must be above 0, got -1"),
        (lambda: deep_metric.multi_similarity(negative_scale=0), "`negative_scale` must be above 0, got 0"),
        (lambda: deep_metric.nca(scale=0), "`scale` must be above 0, got 0"),
        (lambda: deep_metric.nca(n_nearest=0), "`n_nearest` must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
