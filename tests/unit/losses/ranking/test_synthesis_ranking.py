import copy
import math

import jaxtyping
import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn import functional

from udmlss import PseudoLabels, UDMLSSLoss
from udmlss.losses import SynthesisRankingLoss
from udmlss.types import UsesClusterCenters

K, D, EACH = 4, 6, 4


class Recorded(SynthesisRankingLoss):
    """Keeps the synthetic embeddings it drew."""

    def _shift(self, embeddings):
        self.sources, self.synthetic = embeddings, super()._shift(embeddings)
        return self.synthetic


class Tied(SynthesisRankingLoss):
    """Shifts each embedding in directions that follow from it alone, so that rows can be compared."""

    def _shift(self, embeddings):
        lengths = self.radius * torch.arange(1, self.versions + 1).to(embeddings)[:, None]
        directions = torch.sin(7 * lengths * embeddings.detach().unsqueeze(1) + lengths)
        return embeddings.unsqueeze(1) + lengths * functional.normalize(directions, dim=2)


def make(kind=SynthesisRankingLoss, *, k=K, d=D, dtype=torch.float64, **settings):
    """Return a loss whose head is no longer as it was initialised, and which knows centroids of any length."""
    loss = kind(d, **settings).to(dtype)
    nn.init.normal_(loss.layer.bias, std=0.1)
    loss.set_centers(2 * torch.randn(k, d))
    return loss


def make_batch(n_unassigned=0, dtype=torch.float64):
    labels = torch.cat([torch.arange(K).repeat(EACH), torch.full((n_unassigned,), -1)])
    labels = labels[torch.randperm(len(labels))]
    return torch.randn(len(labels), D, dtype=dtype).requires_grad_(), labels


def pseudo_labels(k=K, d=D, *, centers=True):
    labels = torch.arange(k).repeat(2)
    return PseudoLabels(labels, torch.randn(k, d) if centroids else None, labels.bincount())


def unit(vector):
    length = math.sqrt(sum(value**2 for value in vector))
    return [value / length for value in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def project_by_hand(loss, vector):
    rows = [
        dot(row, vector) + bias for row, bias in zip(loss.layer.weight.tolist(), loss.layer.bias.tolist(), strict=True)
    ]
    return [max(value, 0) if loss.rectify else value for value in unit(rows)]


def loss_by_hand(loss, embeddings, labels, synthetic):
    """Return the loss in plain numbers, embedding by embedding, and how many were admitted."""
    shifted, ranking, anchor = iter(synthetic.tolist()), [], []
    for embedding, label in zip(embeddings.tolist(), labels.tolist(), strict=True):
        source, centroid = unit(embedding), unit(loss.proxies[label].tolist())
        if dot(source, centroid) < loss.gate:
            continue
        made = [project_by_hand(loss, row) for row in next(shifted)]
        cosines = [dot(row, project_by_hand(loss, source)) for row in made]
        total = 1.0
        for stronger in range(len(made)):
            for weaker in range(stronger):
                total += math.exp(loss.scale * (cosines[stronger] - cosines[weaker] + loss.margin))
        ranking.append(math.log(total) / loss.scale)
        total = 1.0
        for row in made:
            total += math.exp(loss.anchor_scale * (loss.anchor_margin - dot(row, project_by_hand(loss, centroid))))
        anchor.append(math.log(total))
    n = len(ranking)
    return (loss.ranking_weight * sum(ranking) + loss.anchor_weight * sum(anchor)) / max(1, n), n


@pytest.mark.parametrize("settings", [{}, {"rectify": True}, {"versions": 2, "radius": 0.3, "gate": -1.0}])
@pytest.mark.parametrize("weights", [(0.9, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_the_loss_is_what_plain_numbers_give_embedding_by_embedding(settings, weights):
    ranking_weight, anchor_weight = weights
    chosen = {"scale": 8.0, "anchor_scale": 5.0, "ranking_weight": ranking_weight, "anchor_weight": anchor_weight}
    loss, (embeddings, labels) = make(Recorded, **chosen, **settings), make_batch()
    found = loss(embeddings, labels)
    expected, n = loss_by_hand(loss, embeddings, labels, loss.synthetic)
    assert n == len(loss.synthetic) > 3
    assert settings or n < len(labels)  # the gate shuts some out
    assert found.item() == pytest.approx(expected, abs=1e-6)
    assert found.dtype == torch.float64


def test_the_gradient_is_that_of_finite_differences():
    loss, (embeddings, labels) = make(gate=-1.0, scale=4.0, anchor_scale=4.0, versions=3), make_batch()
    proxies = nn.Parameter(loss.proxies.clone())
    with_proxies = SynthesisRankingLoss(D, proxies=proxies, scale=4.0, anchor_scale=4.0, gate=-1.0).double()

    def compute(embeddings, weight, bias, proxies):
        for one in (loss, with_proxies):
            one.draws.manual_seed(0)
        held = {"layer.weight": weight, "layer.bias": bias}
        one = torch.func.functional_call(loss, held, (embeddings, labels))
        return one + torch.func.functional_call(with_proxies, held | {"proxies": proxies}, (embeddings, labels))

    inputs = (embeddings[:5], loss.layer.weight, loss.layer.bias, proxies)
    labels = labels[:5]
    assert torch.autograd.gradcheck(compute, tuple(one.detach().clone().requires_grad_() for one in inputs))


# What is synthesised


@pytest.mark.parametrize("radius", [0.2, 1.0])
def test_each_synthetic_embedding_lies_farther_than_the_one_before_by_the_radius(radius):
    loss, (embeddings, labels) = make(Recorded, radius=radius), make_batch()
    loss(embeddings, labels)
    distances = (loss.synthetic - loss.sources.unsqueeze(1)).norm(dim=2)
    expected = radius * torch.arange(1, 6, dtype=torch.float64)
    torch.testing.assert_close(distances, expected.expand_as(distances))


def test_the_cosine_to_the_source_falls_with_the_strength_though_all_are_put_back_on_the_sphere():
    torch.manual_seed(1)
    loss = Recorded(64, gate=-1.0, versions=5).double()
    loss.set_centers(torch.randn(1, 64))
    embeddings = torch.randn(2000, 64, dtype=torch.float64)
    loss(embeddings, torch.zeros(2000, dtype=torch.int64))
    on_sphere = functional.normalize(loss.synthetic, dim=2)
    cosines = (on_sphere * functional.normalize(embeddings).unsqueeze(1)).sum(2).mean(0)
    heads = torch.einsum("bnd,bd->bn", loss._project(loss.synthetic), loss._project(loss.sources)).mean(0)
    torch.testing.assert_close(heads, cosines)  # a new head turns the space and keeps its angles
    assert (cosines.diff() < -0.02).all()
    expected = 1 / (1 + torch.arange(1, 6, dtype=torch.float64) ** 2).sqrt()  # directions are nearly orthogonal to all
    torch.testing.assert_close(cosines, expected, atol=0.02, rtol=0)


def test_directions_are_drawn_afresh_for_each_embedding_version_and_call_and_favour_none():
    torch.manual_seed(1)
    loss = Recorded(3, gate=-1.0, versions=4).double()
    loss.set_centers(torch.randn(1, 3))
    embeddings, labels = torch.randn(3000, 3, dtype=torch.float64), torch.zeros(3000, dtype=torch.int64)
    seen = []
    for _ in range(2):
        loss(embeddings, labels)
        seen.append(functional.normalize(loss.synthetic - loss.sources.unsqueeze(1), dim=2))
    directions = torch.stack(seen).flatten(0, 2)
    assert directions.mean(0).norm() < 0.02
    torch.testing.assert_close(
        directions.T @ directions / len(directions), torch.eye(3).double() / 3, atol=0.02, rtol=0
    )
    for one, other in [(seen[0], seen[1]), (seen[0][:, :1], seen[0][:, 1:]), (seen[0][:1], seen[0][1:])]:
        cosines = (one * other).sum(2)
        assert cosines.max() < 1
        assert abs(cosines.mean()) < 0.1


def test_the_seed_decides_what_is_drawn_and_torchs_global_state_is_left_alone():
    batch = make_batch()
    torch.manual_seed(5)
    one = make(seed=1)
    values = {}
    for seed in (1, 1, 2):
        loss = SynthesisRankingLoss(D, seed=seed).double()
        loss.load_state_dict(one.state_dict())
        loss.set_centers(one.proxies)
        before = torch.get_rng_state()
        first, second = loss(*batch), loss(*batch)
        assert torch.equal(before, torch.get_rng_state())
        assert first != second
        if seed in values:
            assert values[seed] == (first, second)
        values[seed] = (first, second)
    assert values[1] != values[2]


def test_a_copy_goes_on_with_the_same_draws():
    loss, batch = make(), make_batch()
    loss(*batch)
    other = copy.deepcopy(loss)
    assert loss(*batch) == other(*batch)


# Which take part


def test_the_order_of_the_rows_makes_no_difference():
    loss, (embeddings, labels) = make(Tied), make_batch()
    order = torch.randperm(len(labels))
    torch.testing.assert_close(loss(embeddings[order], labels[order]), loss(embeddings, labels))


def test_the_names_of_the_clusters_make_no_difference():
    loss, (embeddings, labels) = make(Tied), make_batch()
    expected, renamed = loss(embeddings, labels), torch.randperm(K)
    loss.set_centers(loss.proxies[renamed.argsort()])
    torch.testing.assert_close(loss(embeddings, renamed[labels]), expected)


def test_the_lengths_of_embeddings_and_centroids_make_no_difference():
    loss, (embeddings, labels) = make(Tied), make_batch()
    expected = loss(functional.normalize(embeddings), labels)
    loss.set_centers(5 * loss.proxies)
    torch.testing.assert_close(loss(3 * functional.normalize(embeddings), labels), expected)


def test_embeddings_below_the_gate_count_for_nothing_and_get_no_gradient():
    loss, (embeddings, labels) = make(gate=0.3), make_batch()
    admitted = functional.cosine_similarity(embeddings, loss.proxies[labels]) >= 0.3
    assert 1 < admitted.sum() < len(labels) - 1
    found = loss(embeddings, labels)
    [gradient] = torch.autograd.grad(found, embeddings)
    loss.draws.manual_seed(0)
    torch.testing.assert_close(loss(embeddings[admitted], labels[admitted]), found)
    assert gradient[admitted].any(dim=1).all()
    assert not gradient[~admitted].any()


def test_where_none_passes_the_gate_the_loss_is_zero_and_has_a_gradient():
    loss, (embeddings, labels) = make(gate=1.0), make_batch()
    found = loss(embeddings, labels)
    found.backward()
    assert found == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (torch.randn(6, D), torch.zeros(6)),
        (torch.randn(K, D), torch.arange(K)),
        (torch.randn(1, D).repeat(6, 1), torch.arange(6) % K),
        (torch.zeros(4, D), torch.arange(4)),
        (torch.randn(1, D), torch.zeros(1)),
        (torch.zeros(0, D), torch.zeros(0)),
        (1e-20 * torch.randn(6, D), torch.arange(6) % K),
        (1e18 * torch.randn(6, D), torch.arange(6) % K),
    ],
    ids=["one cluster", "all alone", "duplicates", "zeros", "one", "none", "tiny", "huge"],
)
def test_degenerate_batches_give_finite_values_and_gradients(rows, labels):
    loss, embeddings = make(gate=-1.0, dtype=torch.float32), rows.clone().requires_grad_()
    found = loss(embeddings, labels.long())
    found.backward()
    assert found.isfinite()
    assert embeddings.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_a_centroid_without_a_direction_does_no_harm():
    loss, (embeddings, labels) = make(gate=-1.0), make_batch()
    loss.set_centers(torch.zeros(K, D))
    found = loss(embeddings, labels)
    found.backward()
    assert found.isfinite()
    assert embeddings.grad.isfinite().all()


def test_training_on_it_puts_the_synthetic_embeddings_nearer_to_their_centroid_and_in_order():
    torch.manual_seed(2)
    loss, labels = Recorded(16, scale=8.0).double(), torch.arange(4).repeat(16)
    centres = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q[:4]
    loss.set_centers(centres)
    embeddings = centres[labels] + 0.1 * torch.randn(64, 16, dtype=torch.float64)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(loss(embeddings, labels))
        values[-1].backward()
        optimizer.step()
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


# Beside other losses, and the centroids


def test_it_goes_beside_another_loss_with_its_weight():
    embeddings, labels = make_batch(dtype=torch.float32)
    loss, base = make(dtype=torch.float32), losses.MultiSimilarityLoss(2, 40, 0.5)
    both = UDMLSSLoss(losses.MultipleLosses([base, loss], weights=[1, 0.23]))
    total = both(embeddings, labels)
    loss.draws.manual_seed(0)
    rows = labels.argsort(stable=True)
    expected = base(embeddings[rows], labels[rows]) + 0.23 * loss(embeddings[rows], labels[rows])
    torch.testing.assert_close(total, expected)


def test_mined_pairs_make_no_difference_to_it():
    embeddings, labels = make_batch(dtype=torch.float32)
    loss = make(dtype=torch.float32)
    plain = UDMLSSLoss(loss)(embeddings, labels)
    loss.draws.manual_seed(0)
    mined = UDMLSSLoss(losses.MultipleLosses([loss]), miner=miners.BatchHardMiner())(embeddings, labels)
    torch.testing.assert_close(mined, plain)


def test_rows_left_out_change_nothing_and_get_no_gradient():
    embeddings, labels = make_batch(n_unassigned=5, dtype=torch.float32)
    loss, kept = make(dtype=torch.float32), labels >= 0
    found = UDMLSSLoss(loss)(embeddings, labels)
    [gradient] = torch.autograd.grad(found, embeddings)
    loss.draws.manual_seed(0)
    torch.testing.assert_close(found, UDMLSSLoss(loss)(embeddings[kept], labels[kept]))
    assert not gradient[~kept].any()


def test_half_precision_and_autocast_leave_the_loss_in_float32():
    embeddings, labels = make_batch(dtype=torch.bfloat16)
    loss = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = UDMLSSLoss(loss)(embeddings, labels)
    assert found.dtype == torch.float32
    loss.draws.manual_seed(0)
    torch.testing.assert_close(found, UDMLSSLoss(loss)(embeddings.float(), labels))


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: losses.MultipleLosses([losses.SupConLoss(), loss])])
def test_a_new_round_gives_it_the_centroids_of_any_number_of_clusters(wrap):
    loss = SynthesisRankingLoss(D)
    criterion = UDMLSSLoss(wrap(loss))
    for k in (4, 7, 3):
        pseudo = pseudo_labels(k)
        criterion.start_round(pseudo)
        assert torch.equal(loss.proxies, pseudo.centers)
        assert criterion(torch.randn(2 * k, D), pseudo.labels).isfinite()
    assert not loss.proxies.requires_grad


def test_centroids_take_the_type_of_the_head():
    loss = SynthesisRankingLoss(D)
    loss.set_centers(torch.randn(K, D, dtype=torch.float64, requires_grad=True))
    assert loss.proxies.dtype == torch.float32
    assert not loss.proxies.requires_grad


def test_it_is_one_of_the_losses_that_follow_the_centroids():
    assert isinstance(SynthesisRankingLoss(D), UsesClusterCenters)
    assert not isinstance(losses.ProxyAnchorLoss(K, D), UsesClusterCenters)


def test_proxies_of_another_loss_are_shared_with_it_and_taught_by_both():
    anchor = losses.ProxyAnchorLoss(K, D)
    loss = SynthesisRankingLoss(D, proxies=anchor.proxies, gate=-1.0)
    criterion = UDMLSSLoss(losses.MultipleLosses([anchor, loss], weights=[0, 1]))
    assert len(list(criterion.parameters())) == 3  # the proxies once, and the head
    pseudo = pseudo_labels()
    criterion.start_round(pseudo)
    assert loss.proxies is anchor.proxies
    expected = functional.normalize(pseudo.centers - pseudo.centers.mean(dim=0))
    torch.testing.assert_close(functional.normalize(loss.proxies), expected)
    criterion(torch.randn(2 * K, D), pseudo.labels).backward()
    assert anchor.proxies.grad.any(dim=1).all()
    other = copy.deepcopy(criterion)
    assert other.metric_loss.losses[1].proxies is other.metric_loss.losses[0].proxies
    criterion.to(torch.float64)
    assert loss.proxies is anchor.proxies


def test_with_proxies_it_needs_no_centroids():
    anchor = losses.ProxyAnchorLoss(K, D)
    criterion = UDMLSSLoss(losses.MultipleLosses([anchor, SynthesisRankingLoss(D, proxies=anchor.proxies)]))
    criterion.start_round(pseudo_labels(centers=False))
    assert criterion(torch.randn(2 * K, D), torch.arange(K).repeat(2)).isfinite()


def test_the_state_goes_into_a_new_loss_that_knows_no_centroids_yet():
    loss, fresh = make(), SynthesisRankingLoss(D).double()
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(fresh.layer.weight, loss.layer.weight)
    assert fresh.proxies is None


def test_the_head_begins_as_a_turn_of_the_space():
    layer = SynthesisRankingLoss(D).layer
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(D))
    assert not layer.bias.any()


# What is refused


@pytest.fixture
def untyped(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"versions": 1}, "`versions` must be at least 2, got 1"),
        ({"radius": 0.0}, "`radius` must be above 0, got 0.0"),
        ({"scale": -1.0}, "`scale` must be above 0"),
        ({"anchor_scale": 0.0}, "`anchor_scale` must be above 0"),
        ({"margin": -0.1}, "`margin` must be at least 0"),
        ({"gate": 1.01}, r"`gate` must lie in -1\.\.1, got 1\.01"),
        ({"gate": -2.0}, r"`gate` must lie in -1\.\.1, got -2\.0"),
        ({"anchor_margin": 2.0}, r"`anchor_margin` must lie in -1\.\.1"),
        ({"ranking_weight": -0.9}, "`ranking_weight` must be at least 0, got -0.9"),
        ({"anchor_weight": -0.9}, "`anchor_weight` must be at least 0"),
        ({"proxies": nn.Parameter(torch.zeros(K, 7))}, "was built for embeddings of 6 dimensions, got 7"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        SynthesisRankingLoss(D, **settings)
    with pytest.raises(ValueError, match="`embedding_size` must be at least 1, got 0"):
        SynthesisRankingLoss(0)


def test_before_the_first_round_and_without_centroids_the_way_to_give_them_is_said():
    loss = SynthesisRankingLoss(D)
    with pytest.raises(ValueError, match=r"needs the clusters' centroids, got none\. Call `start_round\(pseudo\)`"):
        loss(*make_batch(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"needs the clusters' centroids, got none\. Let the labeler give them"):
        UDMLSSLoss(loss).start_round(pseudo_labels(centers=False))


@pytest.mark.parametrize(("label", "found"), [(-1, "-1 to 3"), (K, "0 to 4")])
def test_labels_without_a_centroid_are_refused(label, found):
    embeddings, labels = make_batch()
    labels[0], labels[1:5] = label, torch.arange(K)
    with pytest.raises(ValueError, match=rf"`labels` must lie in 0\.\.3, a centroid for each, got {found}\. Call"):
        make()(embeddings, labels)


@pytest.mark.parametrize(
    ("embeddings", "labels", "error", "sentence"),
    [
        (
            torch.zeros(4, 7),
            torch.arange(4),
            ValueError,
            "built for embeddings of 6 dimensions, got 7. Build it with",
        ),
        (torch.zeros(4, D), torch.arange(3), ValueError, r"`labels` must have shape \(4,\)"),
        (torch.zeros(4, D), torch.zeros(4), TypeError, "`labels` must be whole numbers"),
    ],
)
def test_batches_of_the_wrong_shape_are_refused(embeddings, labels, error, sentence, untyped):
    with pytest.raises(error, match=sentence):
        make(dtype=torch.float32)(embeddings, labels)


def test_embeddings_and_centroids_of_another_dimension_are_refused_by_name():
    loss = SynthesisRankingLoss(D)
    sentence = r"SynthesisRankingLoss was built for embeddings of 6 dimensions, got 7\. Build it with embedding size 7"
    for refuse in (lambda: UDMLSSLoss(loss).check_fits(None, 7), lambda: loss.set_centers(torch.zeros(K, 7))):
        with pytest.raises(ValueError, match=sentence):
            refuse()
    UDMLSSLoss(loss).check_fits(17, D)
