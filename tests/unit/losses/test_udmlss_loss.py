"""Every loss of pytorch-metric-learning, found by looking, goes through the same properties."""

import inspect
import math
import warnings
from dataclasses import replace

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn import functional

from udmlss import LossTerms, PseudoLabels, UDMLSSLoss

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # HistogramLoss, by torch

K, D, PER_CLUSTER = 4, 6, 4

NO_LOSSES = {
    "BaseLossWrapper": "abstract",
    "BaseMetricLossFunction": "abstract",
    "GenericPairLoss": "abstract",
    "EmbeddingRegularizerMixin": "part of a loss",
    "WeightRegularizerMixin": "part of a loss",
}
TWO_VIEWS = ("SelfSupervisedLoss", "VICRegLoss")
BY_POSITION = {
    "InstanceLoss": "takes the j-th row of the batch as the example of its j-th class",
    "NPairsLoss": "takes the first pair of each class in the batch",
}
NO_MINERS = {
    "BaseMiner": "abstract",
    "EmbeddingsAlreadyPackagedAsTriplets": "reads anchors, positives and negatives from the rows' order",
}
SIZES = {"num_classes": K, "embedding_size": D, "descriptors_dim": D, "l": D, "K": K, "memory_size": 64}


def required_values():
    return {
        "margin": 0.4,
        "Tn": 1,
        "loss": losses.ContrastiveLoss(),
        "losses": [losses.ContrastiveLoss(), build_pair()],
    }


def build_pair():
    return losses.TripletMarginLoss(margin=0.3)


def build(cls, **chosen):
    """Build a loss or miner from its signature: sizes wherever they are asked for, other arguments where required."""
    torch.manual_seed(1)  # the same weights each time
    inits = [base.__init__ for base in cls.__mro__ if "__init__" in vars(base)]
    named = [
        [p for p in inspect.signature(init).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for init in inits
    ]
    asked = {p.name for parameters in named for p in parameters}
    required = {p.name for p in named[0][1:] if p.default is p.empty}
    values = {name: SIZES[name] for name in asked & SIZES.keys()}
    values |= {name: value for name, value in required_values().items() if name in required}
    values |= chosen
    if required - values.keys():
        pytest.fail(f"{cls.__name__} needs {sorted(required - values.keys())}: teach `build` a value for it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # LargeMarginSoftmaxLoss, by numpy 2
            return cls(**values)
    except Exception as error:  # noqa: BLE001 (whatever it is, the reader wants the loss's name)
        pytest.fail(f"{cls.__name__}(**{values}) cannot be built: {error!r}")


def classes_in(module, left_out):
    return {name: cls for name, cls in vars(module).items() if isinstance(cls, type) and name not in left_out}


CLASSES = {name: cls for name, cls in classes_in(losses, NO_LOSSES).items() if name not in TWO_VIEWS}
WRAPPED = [f"CrossBatchMemory({name})" for name in losses.CrossBatchMemory.supported_losses()]
ALL = [*CLASSES, *WRAPPED]
MINERS = classes_in(miners, NO_MINERS)


def make(name):
    outer, _, inner = name.removesuffix(")").partition("(")
    return build(CLASSES[outer], **({"loss": build(CLASSES[inner])} if inner else {}))


def has_directions(name):
    try:
        return any(parameter.ndim == 2 for parameter in make(name).parameters())
    except pytest.fail.Exception:  # said by the tests that walk over it
        return False


WITH_DIRECTIONS = [name for name in CLASSES if has_directions(name)]  # proxies, classifier weights


def make_batch(n_unassigned=0, dtype=torch.float32):
    """Return unit embeddings of K clusters in mixed order, some rows between them left out."""
    labels = torch.cat([torch.arange(K).repeat(PER_CLUSTER), torch.full((n_unassigned,), -1)])
    labels = labels[torch.randperm(len(labels))]
    return functional.normalize(torch.randn(len(labels), D)).to(dtype).requires_grad_(), labels


def grouped(labels):
    return [row for cluster in range(K) for row in range(len(labels)) if labels[row] == cluster]


def by_hand(loss, embeddings, labels, mine=None):
    """Return the bare loss on the rows of the clusters, one cluster after the other."""
    rows = grouped(labels)
    embeddings, labels = embeddings[rows], labels[rows]
    if isinstance(loss, losses.ManifoldLoss):
        return loss(embeddings, indices_tuple=labels)
    return loss(embeddings, labels) if mine is None else loss(embeddings, labels, mine(embeddings, labels))


def pseudo_labels(labels, embeddings, n_clusters=K):
    centroids = torch.stack([embeddings[labels == cluster].mean(0) for cluster in range(n_clusters)])
    return PseudoLabels(labels, centroids, labels[labels >= 0].bincount(minlength=n_clusters))


def separated_clusters():
    """Return unit embeddings close to K orthogonal directions, none of them an axis of its own cluster's number."""
    labels = torch.arange(K).repeat_interleave(PER_CLUSTER)
    directions = torch.linalg.qr(torch.randn(D, D)).Q[:K]
    return functional.normalize(directions[labels] + 0.02 * torch.randn(len(labels), D)), labels


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some values before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# Any loss


def test_what_is_left_out_of_the_walk_exists():
    assert all(isinstance(getattr(losses, name), type) for name in [*NO_LOSSES, *TWO_VIEWS, *BY_POSITION])
    assert all(isinstance(getattr(miners, name), type) for name in NO_MINERS)


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_a_finite_float32_scalar_with_a_gradient_to_embeddings_and_parameters(name):
    embeddings, labels = make_batch()
    criterion = UDMLSSLoss(make(name))
    loss = criterion(embeddings, labels)
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()
    assert (embeddings.grad != 0).any(dim=1).sum() > len(labels) // 4
    for parameter in criterion.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("name", ALL)
def test_the_loss_equals_the_bare_one_on_the_same_rows(name):
    embeddings, labels = make_batch()
    expected = by_hand(make(name), embeddings, labels)
    torch.testing.assert_close(UDMLSSLoss(make(name))(embeddings, labels), expected)


@pytest.mark.parametrize("name", ALL)
def test_rows_left_out_change_nothing_and_get_no_gradient(name):
    embeddings, labels = make_batch(n_unassigned=5)
    kept = labels >= 0
    loss = UDMLSSLoss(make(name))(embeddings, labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    without = embeddings.detach()[kept].requires_grad_()
    expected = UDMLSSLoss(make(name))(without, labels[kept])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[kept], *torch.autograd.grad(expected, without))
    assert not gradient[~kept].any()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_nothing_else_than_left_out_has_zero_loss_and_a_zero_gradient(name):
    embeddings, _ = make_batch()
    loss = UDMLSSLoss(make(name))(embeddings, torch.full((len(embeddings),), -1))
    loss.backward()
    assert loss == 0
    assert loss.dtype == torch.float32
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("name", [name for name in ALL if name not in BY_POSITION])
def test_the_order_of_the_rows_makes_no_difference(name):
    embeddings, labels = make_batch()
    order = torch.randperm(len(labels))
    expected = UDMLSSLoss(make(name))(embeddings, labels)
    torch.testing.assert_close(UDMLSSLoss(make(name))(embeddings[order], labels[order]), expected)


@pytest.mark.parametrize("name", BY_POSITION)
def test_the_order_of_the_clusters_makes_no_difference_to_a_loss_that_goes_by_position(name):
    embeddings, labels = make_batch()
    order = torch.tensor(grouped(labels)).view(K, PER_CLUSTER).flip(0).flatten()
    expected = UDMLSSLoss(make(name))(embeddings, labels)
    torch.testing.assert_close(UDMLSSLoss(make(name))(embeddings[order], labels[order]), expected)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_autocast_leave_loss_and_parameters_in_float32(name):
    embeddings, labels = make_batch(dtype=torch.bfloat16)
    criterion = UDMLSSLoss(make(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(embeddings, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {tensor.dtype for tensor in criterion.parameters()} <= {torch.float32}
    assert {tensor.dtype for tensor in criterion.buffers()} <= {torch.float32, torch.int64}
    torch.testing.assert_close(loss, by_hand(make(name), embeddings.float(), labels))


@pytest.mark.parametrize("name", ALL)
def test_labels_in_int32_do_as_well(name, untyped):
    embeddings, labels = make_batch(n_unassigned=2)
    expected = UDMLSSLoss(make(name))(embeddings, labels)
    torch.testing.assert_close(UDMLSSLoss(make(name))(embeddings, labels.int()), expected)


@given(st.lists(st.integers(-1, K - 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_masking_holds_for_any_labels(found):
    labels = torch.tensor(found)
    embeddings = torch.randn(len(labels), D, requires_grad=True)
    loss = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5))(embeddings, labels)
    [gradient] = torch.autograd.grad(loss, embeddings)
    rows = grouped(labels)
    expected = losses.MultiSimilarityLoss(2, 40, 0.5)(embeddings[rows], labels[rows]) if rows else torch.tensor(0.0)
    torch.testing.assert_close(loss, expected)
    assert gradient.isfinite().all()
    assert not gradient[labels < 0].any()


def test_a_plain_callable_is_a_loss():
    embeddings, labels = make_batch(n_unassigned=3)
    criterion = UDMLSSLoss(lambda rows, clusters: (rows.sum(1) * clusters).sum())
    expected = sum(embeddings[row].sum() * labels[row] for row in range(len(labels)) if labels[row] >= 0)
    torch.testing.assert_close(criterion(embeddings, labels), expected)
    criterion.start_round(pseudo_labels(labels, embeddings.detach()))
    assert not list(criterion.parameters())


# What is refused


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: losses.MultipleLosses([build_pair(), loss])])
def test_a_loss_of_two_views_is_refused_with_its_name_wherever_it_stands(name, wrap):
    with pytest.raises(TypeError, match=rf"`metric_loss` must learn from labels, got {name}: it compares two views"):
        UDMLSSLoss(wrap(build(getattr(losses, name))))


def test_a_loss_without_labels_is_refused_where_it_cannot_be_given_clusters_in_their_place():
    with pytest.raises(TypeError, match="ManifoldLoss"):
        UDMLSSLoss(losses.MultipleLosses([build_pair(), make("ManifoldLoss")]))


@pytest.mark.parametrize("found", [losses.ContrastiveLoss, 0.1, "ContrastiveLoss"])
def test_what_is_no_loss_object_is_refused(found, untyped):
    sentence = r"`metric_loss` must be a loss object \(embeddings, labels\) -> scalar, got .*\. Pass an instance, such"
    with pytest.raises(TypeError, match=sentence):
        UDMLSSLoss(found)


@pytest.mark.parametrize("found", [miners.MultiSimilarityMiner, 0.1])
def test_what_is_no_miner_object_is_refused(found, untyped):
    with pytest.raises(TypeError, match=r"`miner` must be a miner object, got .*\. Pass MultiSimilarityMiner\(0.1\)"):
        UDMLSSLoss(build_pair(), miner=found)


def test_a_negative_weight_of_rotation_is_refused():
    with pytest.raises(ValueError, match=r"`rotation_weight` must be at least 0, got -0\.1"):
        UDMLSSLoss(build_pair(), rotation_weight=-0.1)


@pytest.mark.parametrize(
    ("labels", "error", "sentence"),
    [
        (torch.zeros(4), TypeError, "`labels` must be whole numbers, got torch.float32"),
        (
            torch.zeros(3, dtype=torch.int64),
            ValueError,
            r"must have shape \(4,\), one label per item, got shape \(3,\)",
        ),
        (torch.zeros(4, 1, dtype=torch.int64), ValueError, r"found shape \(4, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, error, sentence, untyped):
    with pytest.raises(error, match=sentence):
        UDMLSSLoss(build_pair())(torch.eye(4), labels)


# Miners


@pytest.mark.parametrize("name", MINERS)
def test_every_miner_mines_the_rows_that_are_not_left_out(name):
    embeddings, labels = make_batch(n_unassigned=5)
    criterion, miner = UDMLSSLoss(build_pair(), miner=build(MINERS[name])), build(MINERS[name])
    torch.manual_seed(2)  # some miners draw
    loss = criterion(embeddings, labels)
    torch.manual_seed(2)
    torch.testing.assert_close(loss, by_hand(build_pair(), embeddings, labels, miner))
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert not gradient[labels < 0].any()


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("CrossBatchMemory", "ManifoldLoss"))])
def test_a_loss_takes_a_miner_as_the_bare_one_does_or_refuses_it_by_name(name):
    embeddings, labels = make_batch()
    criterion = UDMLSSLoss(make(name), miner=miners.BatchHardMiner())
    try:
        rows = grouped(labels)
        mined = miners.BatchHardMiner()(embeddings[rows], labels[rows])
        expected = make(name)(embeddings[rows], labels[rows], mined)
    except ValueError:
        with pytest.raises(ValueError, match=rf"{name} takes no mined pairs, got `miner=BatchHardMiner`\. Leave"):
            criterion(embeddings, labels)
    else:
        torch.testing.assert_close(criterion(embeddings, labels), expected)


@pytest.mark.parametrize("name", ["InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss"])
def test_a_loss_without_place_for_mined_pairs_says_so(name):
    criterion = UDMLSSLoss(make(name), miner=miners.MultiSimilarityMiner(0.1))
    with pytest.raises(ValueError, match=rf"{name} takes no mined pairs, got `miner=MultiSimilarityMiner`"):
        criterion(*make_batch())


def test_a_memory_and_clusters_in_the_place_of_mined_pairs_refuse_a_miner_at_once():
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 8)
    for loss in (memory, losses.MultipleLosses([losses.SupConLoss(), memory])):
        with pytest.raises(ValueError, match=r"must mine in its memory.*found `miner=BatchHardMiner`\. Give the miner"):
            UDMLSSLoss(loss, miner=miners.BatchHardMiner())
    with pytest.raises(ValueError, match=r"ManifoldLoss takes no mined pairs, got `miner=BatchHardMiner`\. Leave"):
        UDMLSSLoss(make("ManifoldLoss"), miner=miners.BatchHardMiner())


def test_another_error_of_the_loss_is_passed_on_as_it_is():
    def broken(embeddings, labels, indices):
        raise ValueError("something else")

    with pytest.raises(ValueError, match=r"^something else$"):
        UDMLSSLoss(broken, miner=miners.MultiSimilarityMiner(0.1))(*make_batch())


# The rotation part


def cross_entropy(logits, turns):
    found = [
        math.log(sum(math.exp(value) for value in row)) - row[turn]
        for row, turn in zip(logits.tolist(), turns.tolist(), strict=True)
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("weight", [0, 0.1, 3])
def test_the_total_is_the_metric_loss_plus_the_weighted_cross_entropy_of_the_turns(weight):
    embeddings, labels = make_batch(n_unassigned=2)
    logits, turns = torch.randn(8, 4, requires_grad=True), torch.randint(4, (8,))
    criterion = UDMLSSLoss(build_pair(), rotation_weight=weight)
    terms = criterion.terms(embeddings, labels, logits, turns)
    metric, rotation = by_hand(build_pair(), embeddings, labels).item(), cross_entropy(logits, turns)
    assert isinstance(terms, LossTerms)
    assert terms.metric.item() == pytest.approx(metric)
    assert terms.rotation.item() == pytest.approx(rotation, rel=1e-5)
    assert terms.total.item() == pytest.approx(metric + weight * rotation, rel=1e-5)
    assert torch.equal(criterion(embeddings, labels, logits, turns), terms.total)
    terms.total.backward()
    assert bool(logits.grad.any()) == (weight > 0)


def test_the_published_weight_is_the_default():
    assert UDMLSSLoss(build_pair()).rotation_weight == 0.1


def test_without_turns_the_rotation_loss_is_zero():
    embeddings, labels = make_batch()
    terms = UDMLSSLoss(build_pair(), rotation_weight=5).terms(embeddings, labels)
    assert terms.rotation == 0
    assert terms.total == terms.metric


def test_turns_teach_even_where_no_image_has_a_cluster():
    logits, turns = torch.randn(8, 4, requires_grad=True), torch.randint(4, (8,))
    loss = UDMLSSLoss(build_pair(), rotation_weight=2)(make_batch()[0], torch.full((16,), -1), logits, turns)
    loss.backward()
    assert loss.item() == pytest.approx(2 * cross_entropy(logits, turns), rel=1e-5)
    assert logits.grad.any()


def test_turns_in_half_precision_are_judged_in_float32():
    embeddings, labels = make_batch()
    logits, turns = torch.randn(8, 4).bfloat16(), torch.randint(4, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = UDMLSSLoss(build_pair()).terms(embeddings, labels, logits, turns)
    assert terms.rotation.dtype == terms.total.dtype == torch.float32
    assert terms.rotation.item() == pytest.approx(cross_entropy(logits, turns), rel=1e-5)


@pytest.mark.parametrize(
    ("logits", "turns", "found"),
    [
        (torch.zeros(4, 4), None, "`turn_logits` alone"),
        (None, torch.zeros(4, dtype=torch.int64), "`turns` alone"),
    ],
)
def test_logits_and_turns_are_refused_without_each_other(logits, turns, found):
    with pytest.raises(ValueError, match=rf"`turn_logits` and `turns` go together, got {found}\. Pass both"):
        UDMLSSLoss(build_pair())(*make_batch(), logits, turns)


# A new round


@pytest.mark.parametrize("name", ALL)
def test_a_loss_built_for_the_clusters_goes_on_in_a_new_round(name):
    embeddings, labels = separated_clusters()
    criterion = UDMLSSLoss(make(name))
    criterion(embeddings, labels)
    held = list(criterion.parameters())
    criterion.start_round(pseudo_labels(labels, embeddings))
    loss = criterion(embeddings.requires_grad_(), labels)
    loss.backward()
    assert loss.isfinite()
    assert all(old is new for old, new in zip(held, criterion.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad.isfinite().all() for parameter in criterion.parameters())


@pytest.mark.parametrize("name", WITH_DIRECTIONS)
def test_after_a_round_begins_no_other_naming_of_the_clusters_has_as_low_a_loss(name):
    embeddings, labels = separated_clusters()
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(pseudo_labels(labels, embeddings))
    right, *others = [criterion(embeddings, (labels + shift) % K).item() for shift in range(K)]
    assert right < min(others)


@pytest.mark.parametrize("name", WITH_DIRECTIONS)
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: losses.MultipleLosses([build_pair(), loss])])
def test_another_number_of_clusters_is_refused_with_both_numbers(name, wrap):
    embeddings, labels = torch.randn(10, D), torch.arange(5).repeat(2)
    criterion = UDMLSSLoss(wrap(make(name)) if name != "ManifoldLoss" else make(name))
    before = [parameter.clone() for parameter in criterion.parameters()]
    sentence = rf"{name} holds parameters for 4 clusters and needs as many in every round, got 5\. Use .*\(4\)"
    with pytest.raises(ValueError, match=sentence):
        criterion.start_round(pseudo_labels(labels, embeddings, 5))
    assert all(map(torch.equal, before, criterion.parameters()))


@pytest.mark.parametrize("name", WITH_DIRECTIONS)
def test_another_number_of_clusters_is_refused_even_where_a_labeler_knows_no_centroids(name):
    labels = torch.arange(5).repeat(2)
    with pytest.raises(ValueError, match=rf"{name} holds parameters for 4 clusters .* found 5"):
        UDMLSSLoss(make(name)).start_round(PseudoLabels(labels, None, labels.bincount()))


@pytest.mark.parametrize("name", WITH_DIRECTIONS)
def test_embeddings_of_another_dimension_are_refused_with_both_numbers(name):
    embeddings, labels = torch.randn(8, 7), torch.arange(K).repeat(2)
    with pytest.raises(ValueError, match=rf"{name} was built for embeddings of 6 dimensions, got 7\. Build it with"):
        UDMLSSLoss(make(name)).start_round(pseudo_labels(labels, embeddings))


def test_a_margin_per_cluster_is_refused_for_other_clusters():
    criterion = UDMLSSLoss(losses.MarginLoss(learn_beta=True, num_classes=K))
    labels = torch.arange(5).repeat(2)
    with pytest.raises(ValueError, match=r"MarginLoss holds parameters for 4 clusters .* found 5"):
        criterion.start_round(pseudo_labels(labels, torch.randn(10, D), 5))


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WITH_DIRECTIONS and name != "MarginLoss"])
def test_a_loss_without_proxies_takes_any_number_of_clusters(name):
    embeddings, labels = functional.normalize(torch.randn(20, D)), torch.arange(5).repeat(4)
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(pseudo_labels(labels, embeddings, 5))
    assert criterion(embeddings, labels).isfinite()


@pytest.mark.parametrize(
    "wrap", [lambda loss: loss, lambda loss: losses.MultipleLosses({"a": build_pair(), "b": loss})]
)
@pytest.mark.parametrize("with_centroids", [True, False])
def test_a_memory_is_emptied_wherever_it_stands(wrap, with_centroids):
    embeddings, labels = make_batch()
    pseudo = pseudo_labels(labels, embeddings.detach())
    memory = make("CrossBatchMemory")
    criterion = UDMLSSLoss(wrap(memory))
    first = criterion(embeddings, labels)
    assert memory.queue_idx == len(labels)
    assert criterion(embeddings, labels) != first
    criterion.start_round(pseudo if with_centroids else PseudoLabels(labels, None, pseudo.sizes))
    assert memory.queue_idx == 0
    assert not memory.has_been_filled
    assert not memory.embedding_memory.any()
    assert criterion(embeddings, labels) == first


def test_without_centroids_proxies_stay_as_they_are():
    criterion = UDMLSSLoss(make("ProxyAnchorLoss"))
    before = criterion.metric_loss.proxies.clone()
    labels = torch.arange(K).repeat(2)
    criterion.start_round(PseudoLabels(labels, None, labels.bincount()))
    assert torch.equal(criterion.metric_loss.proxies, before)


def test_proxies_are_found_in_nested_losses():
    embeddings, labels = separated_clusters()
    pseudo = pseudo_labels(labels, embeddings)
    inner = [make("ProxyAnchorLoss"), losses.MultipleLosses([make("NormalizedSoftmaxLoss")])]
    UDMLSSLoss(losses.MultipleLosses(inner)).start_round(pseudo)
    expected = functional.normalize(pseudo.centers - pseudo.centers.mean(dim=0))
    torch.testing.assert_close(functional.normalize(inner[0].proxies), expected)
    torch.testing.assert_close(functional.normalize(inner[1].losses[0].W.T), expected)


@pytest.mark.parametrize("name", WITH_DIRECTIONS)
def test_what_all_clusters_have_in_common_moves_no_proxy(name):
    embeddings, labels = separated_clusters()
    pseudo = pseudo_labels(labels, embeddings)
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(pseudo)
    before = [parameter.clone() for parameter in criterion.parameters()]
    criterion.start_round(replace(pseudo, centers=pseudo.centers + 5 * torch.ones(D)))
    for parameter, old in zip(criterion.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=1e-4, atol=1e-4)


def test_a_module_of_ones_own_keeps_its_parameters():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.proxies = nn.Parameter(torch.randn(9, 3))

        def forward(self, embeddings, labels):
            return embeddings.sum() + self.proxies.sum()

    embeddings, labels = separated_clusters()
    criterion = UDMLSSLoss(Own())
    before = criterion.metric_loss.proxies.clone()
    criterion.start_round(pseudo_labels(labels, embeddings))
    assert torch.equal(criterion.metric_loss.proxies, before)
