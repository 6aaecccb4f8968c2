"""SynthesisRankingLoss, compared with its definition, and its centers."""

import copy
import math

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn import functional

from udmlss import PseudoLabels, UDMLSSLoss
from udmlss.losses import SynthesisRankingLoss
from udmlss.types import UsesClusterCenters

K, D, IMAGES_PER_CLUSTER = 4, 6, 4


class Recorded(SynthesisRankingLoss):
    """Stores its synthetic embeddings."""

    def _synthesize(self, embeddings):
        self.sources, self.synthetic = embeddings, super()._synthesize(embeddings)
        return self.synthetic


class Deterministic(SynthesisRankingLoss):
    """Has directions that depend only on the embedding, so that results for different batches can be compared."""

    def _synthesize(self, embeddings):
        lengths = self.radius * torch.arange(1, self.n_synthetic + 1).to(embeddings)[:, None]
        directions = torch.sin(7 * lengths * embeddings.detach().unsqueeze(1) + lengths)
        return embeddings.unsqueeze(1) + lengths * functional.normalize(directions, dim=2)


def make(kind=SynthesisRankingLoss, *, k=K, d=D, dtype=torch.float64, **settings):
    """Return a loss with centers of any length and a head with a random bias."""
    loss = kind(d, **settings).to(dtype)
    nn.init.normal_(loss.layer.bias, std=0.1)
    loss.set_centers(2 * torch.randn(k, d))
    return loss


def make_batch(n_unassigned=0, dtype=torch.float64):
    labels = torch.cat([torch.arange(K).repeat(IMAGES_PER_CLUSTER), torch.full((n_unassigned,), -1)])
    labels = labels[torch.randperm(len(labels))]
    return torch.randn(len(labels), D, dtype=dtype).requires_grad_(), labels


def pseudo_labels(k=K, d=D, *, centers=True):
    labels = torch.arange(k).repeat(2)
    return PseudoLabels(labels, torch.randn(k, d) if centers else None, labels.bincount())


def unit(vector):
    length = math.sqrt(sum(value**2 for value in vector))
    return [value / length for value in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_projection(loss, vector):
    rows = [
        dot(row, vector) + bias for row, bias in zip(loss.layer.weight.tolist(), loss.layer.bias.tolist(), strict=True)
    ]
    return [max(value, 0) if loss.relu else value for value in unit(rows)]


def naive_loss(loss, embeddings, labels, synthetic):
    """Return the loss, computed embedding by embedding, and the number of embeddings that are similar to a center."""
    synthetic_rows, ranking, anchor = iter(synthetic.tolist()), [], []
    for embedding, label in zip(embeddings.tolist(), labels.tolist(), strict=True):
        source, center = unit(embedding), unit(loss.proxies[label].tolist())
        if dot(source, center) < loss.min_similarity:
            continue
        projections = [naive_projection(loss, row) for row in next(synthetic_rows)]
        cosines = [dot(row, naive_projection(loss, source)) for row in projections]
        total = 1.0
        for farther in range(len(projections)):
            for nearer in range(farther):
                total += math.exp(loss.scale * (cosines[farther] - cosines[nearer] + loss.margin))
        ranking.append(math.log(total) / loss.scale)
        total = 1.0
        for row in projections:
            total += math.exp(loss.anchor_scale * (loss.anchor_margin - dot(row, naive_projection(loss, center))))
        anchor.append(math.log(total))
    n = len(ranking)
    return (loss.ranking_weight * sum(ranking) + loss.anchor_weight * sum(anchor)) / max(1, n), n


@pytest.mark.parametrize("settings", [{}, {"relu": True}, {"n_synthetic": 2, "radius": 0.3, "min_similarity": -1.0}])
@pytest.mark.parametrize("weights", [(0.9, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_equals_the_definition(settings, weights):
    ranking_weight, anchor_weight = weights
    chosen = {"scale": 8.0, "anchor_scale": 5.0, "ranking_weight": ranking_weight, "anchor_weight": anchor_weight}
    loss, (embeddings, labels) = make(Recorded, **chosen, **settings), make_batch()
    value = loss(embeddings, labels)
    expected, n = naive_loss(loss, embeddings, labels, loss.synthetic)
    assert n == len(loss.synthetic) > 3
    assert settings or n < len(labels)  # some embeddings are below the smallest similarity
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert value.dtype == torch.float64


def test_gradient_equals_finite_differences():
    loss, (embeddings, labels) = make(min_similarity=-1.0, scale=4.0, anchor_scale=4.0, n_synthetic=3), make_batch()
    proxies = nn.Parameter(loss.proxies.clone())
    with_proxies = SynthesisRankingLoss(D, proxies=proxies, scale=4.0, anchor_scale=4.0, min_similarity=-1.0).double()

    def compute(embeddings, weight, bias, proxies):
        for one in (loss, with_proxies):
            one.generator.manual_seed(0)
        head = {"layer.weight": weight, "layer.bias": bias}
        value = torch.func.functional_call(loss, head, (embeddings, labels))
        return value + torch.func.functional_call(with_proxies, head | {"proxies": proxies}, (embeddings, labels))

    inputs = (embeddings[:5], loss.layer.weight, loss.layer.bias, proxies)
    labels = labels[:5]
    assert torch.autograd.gradcheck(compute, tuple(one.detach().clone().requires_grad_() for one in inputs))


# Synthetic embeddings


@pytest.mark.parametrize("radius", [0.2, 1.0])
def test_distances_of_synthetic_embeddings_are_multiples_of_the_radius(radius):
    loss, (embeddings, labels) = make(Recorded, radius=radius), make_batch()
    loss(embeddings, labels)
    distances = (loss.synthetic - loss.sources.unsqueeze(1)).norm(dim=2)
    expected = radius * torch.arange(1, 6, dtype=torch.float64)
    torch.testing.assert_close(distances, expected.expand_as(distances))


def test_similarity_to_the_embedding_decreases_with_distance_after_normalization():
    torch.manual_seed(1)
    loss = Recorded(64, min_similarity=-1.0, n_synthetic=5).double()
    loss.set_centers(torch.randn(1, 64))
    embeddings = torch.randn(2000, 64, dtype=torch.float64)
    loss(embeddings, torch.zeros(2000, dtype=torch.int64))
    normalized = functional.normalize(loss.synthetic, dim=2)
    cosines = (normalized * functional.normalize(embeddings).unsqueeze(1)).sum(2).mean(0)
    heads = torch.einsum("bnd,bd->bn", loss._project(loss.synthetic), loss._project(loss.sources)).mean(0)
    torch.testing.assert_close(heads, cosines)  # a new head is a rotation, which preserves angles
    assert (cosines.diff() < -0.02).all()
    expected = 1 / (1 + torch.arange(1, 6, dtype=torch.float64) ** 2).sqrt()  # random directions are nearly orthogonal
    torch.testing.assert_close(cosines, expected, atol=0.02, rtol=0)


def test_directions_are_uniform_and_differ_between_embeddings_and_calls():
    torch.manual_seed(1)
    loss = Recorded(3, min_similarity=-1.0, n_synthetic=4).double()
    loss.set_centers(torch.randn(1, 3))
    embeddings, labels = torch.randn(3000, 3, dtype=torch.float64), torch.zeros(3000, dtype=torch.int64)
    calls = []
    for _ in range(2):
        loss(embeddings, labels)
        calls.append(functional.normalize(loss.synthetic - loss.sources.unsqueeze(1), dim=2))
    directions = torch.stack(calls).flatten(0, 2)
    assert directions.mean(0).norm() < 0.02
    torch.testing.assert_close(
        directions.T @ directions / len(directions), torch.eye(3).double() / 3, atol=0.02, rtol=0
    )
    for one, other in [(calls[0], calls[1]), (calls[0][:, :1], calls[0][:, 1:]), (calls[0][:1], calls[0][1:])]:
        cosines = (one * other).sum(2)
        assert cosines.max() < 1
        assert abs(cosines.mean()) < 0.1


# Embeddings and centers


def test_is_invariant_to_the_order_of_rows():
    loss, (embeddings, labels) = make(Deterministic), make_batch()
    order = torch.randperm(len(labels))
    torch.testing.assert_close(loss(embeddings[order], labels[order]), loss(embeddings, labels))


def test_is_invariant_to_the_numbers_of_clusters():
    loss, (embeddings, labels) = make(Deterministic), make_batch()
    expected, numbers = loss(embeddings, labels), torch.randperm(K)
    loss.set_centers(loss.proxies[numbers.argsort()])
    torch.testing.assert_close(loss(embeddings, numbers[labels]), expected)


def test_is_invariant_to_the_lengths_of_embeddings_and_centers():
    loss, (embeddings, labels) = make(Deterministic), make_batch()
    expected = loss(functional.normalize(embeddings), labels)
    loss.set_centers(5 * loss.proxies)
    torch.testing.assert_close(loss(3 * functional.normalize(embeddings), labels), expected)


def test_ignores_embeddings_below_the_smallest_similarity():
    loss, (embeddings, labels) = make(min_similarity=0.3), make_batch()
    is_similar = functional.cosine_similarity(embeddings, loss.proxies[labels]) >= 0.3
    assert 1 < is_similar.sum() < len(labels) - 1
    value = loss(embeddings, labels)
    [gradient] = torch.autograd.grad(value, embeddings)
    loss.generator.manual_seed(0)
    torch.testing.assert_close(loss(embeddings[is_similar], labels[is_similar]), value)
    assert gradient[is_similar].any(dim=1).all()
    assert not gradient[~is_similar].any()


def test_is_zero_with_a_zero_gradient_if_no_embedding_is_similar_to_its_center():
    loss, (embeddings, labels) = make(min_similarity=1.0), make_batch()
    value = loss(embeddings, labels)
    value.backward()
    assert value == 0
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
    ids=["one cluster", "single rows", "duplicates", "zeros", "one row", "no rows", "tiny", "huge"],
)
def test_loss_and_gradient_of_degenerate_batches_are_finite(rows, labels):
    loss, embeddings = make(min_similarity=-1.0, dtype=torch.float32), rows.clone().requires_grad_()
    value = loss(embeddings, labels.long())
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_loss_and_gradient_with_zero_centers_are_finite():
    loss, (embeddings, labels) = make(min_similarity=-1.0), make_batch()
    loss.set_centers(torch.zeros(K, D))
    value = loss(embeddings, labels)
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.isfinite().all()


def test_training_lowers_the_loss():
    torch.manual_seed(2)
    loss, labels = Recorded(16, scale=8.0).double(), torch.arange(4).repeat(16)
    centers = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q[:4]
    loss.set_centers(centers)
    embeddings = centers[labels] + 0.1 * torch.randn(64, 16, dtype=torch.float64)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(loss(embeddings, labels))
        values[-1].backward()
        optimizer.step()
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


# Combination with other losses


def test_is_weighted_in_multiple_losses():
    embeddings, labels = make_batch(dtype=torch.float32)
    loss, base = make(dtype=torch.float32), losses.MultiSimilarityLoss(2, 40, 0.5)
    both = UDMLSSLoss(losses.MultipleLosses([base, loss], weights=[1, 0.23]))
    total = both(embeddings, labels)
    loss.generator.manual_seed(0)
    rows = labels.argsort(stable=True)
    expected = base(embeddings[rows], labels[rows]) + 0.23 * loss(embeddings[rows], labels[rows])
    torch.testing.assert_close(total, expected)


def test_ignores_mined_pairs():
    embeddings, labels = make_batch(dtype=torch.float32)
    loss = make(dtype=torch.float32)
    plain = UDMLSSLoss(loss)(embeddings, labels)
    loss.generator.manual_seed(0)
    mined = UDMLSSLoss(losses.MultipleLosses([loss]), miner=miners.BatchHardMiner())(embeddings, labels)
    torch.testing.assert_close(mined, plain)


def test_unassigned_rows_are_masked():
    embeddings, labels = make_batch(n_unassigned=5, dtype=torch.float32)
    loss, assigned = make(dtype=torch.float32), labels >= 0
    value = UDMLSSLoss(loss)(embeddings, labels)
    [gradient] = torch.autograd.grad(value, embeddings)
    loss.generator.manual_seed(0)
    torch.testing.assert_close(value, UDMLSSLoss(loss)(embeddings[assigned], labels[assigned]))
    assert not gradient[~assigned].any()


def test_runs_in_float32_under_autocast():
    embeddings, labels = make_batch(dtype=torch.bfloat16)
    loss = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = UDMLSSLoss(loss)(embeddings, labels)
    assert value.dtype == torch.float32
    loss.generator.manual_seed(0)
    torch.testing.assert_close(value, UDMLSSLoss(loss)(embeddings.float(), labels))


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: losses.MultipleLosses([losses.SupConLoss(), loss])])
def test_a_new_round_sets_the_centers_of_any_number_of_clusters(wrap):
    loss = SynthesisRankingLoss(D)
    criterion = UDMLSSLoss(wrap(loss))
    for k in (4, 7, 3):
        pseudo = pseudo_labels(k)
        criterion.start_round(pseudo)
        assert torch.equal(loss.proxies, pseudo.centers)
        assert criterion(torch.randn(2 * k, D), pseudo.labels).isfinite()
    assert not loss.proxies.requires_grad


def test_centers_are_converted_to_the_dtype_of_the_head():
    loss = SynthesisRankingLoss(D)
    loss.set_centers(torch.randn(K, D, dtype=torch.float64, requires_grad=True))
    assert loss.proxies.dtype == torch.float32
    assert not loss.proxies.requires_grad


def test_implements_uses_cluster_centers():
    assert isinstance(SynthesisRankingLoss(D), UsesClusterCenters)
    assert not isinstance(losses.ProxyAnchorLoss(K, D), UsesClusterCenters)


def test_shares_the_proxies_of_another_loss():
    anchor = losses.ProxyAnchorLoss(K, D)
    loss = SynthesisRankingLoss(D, proxies=anchor.proxies, min_similarity=-1.0)
    criterion = UDMLSSLoss(losses.MultipleLosses([anchor, loss], weights=[0, 1]))
    assert len(list(criterion.parameters())) == 3  # the shared proxies, and weight and bias of the head
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


def test_needs_no_centers_with_proxies():
    anchor = losses.ProxyAnchorLoss(K, D)
    criterion = UDMLSSLoss(losses.MultipleLosses([anchor, SynthesisRankingLoss(D, proxies=anchor.proxies)]))
    criterion.start_round(pseudo_labels(centers=False))
    assert criterion(torch.randn(2 * K, D), torch.arange(K).repeat(2)).isfinite()


def test_state_dict_does_not_contain_centers():
    loss, fresh = make(), SynthesisRankingLoss(D).double()
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(fresh.layer.weight, loss.layer.weight)
    assert fresh.proxies is None


def test_head_is_initialized_as_a_rotation():
    layer = SynthesisRankingLoss(D).layer
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(D))
    assert not layer.bias.any()


# Errors


def test_rejects_missing_centers():
    loss = SynthesisRankingLoss(D)
    with pytest.raises(ValueError, match=r"needs the cluster centers, got None\. Call `start_round\(pseudo_labels\)`"):
        loss(*make_batch(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"needs the cluster centers, got None\. Return centers from the labeler"):
        UDMLSSLoss(loss).start_round(pseudo_labels(centers=False))


@pytest.mark.parametrize(("label", "found"), [(-1, "-1 to 3"), (K, "0 to 4")])
def test_rejects_labels_without_a_center(label, found):
    embeddings, labels = make_batch()
    labels[0], labels[1:5] = label, torch.arange(K)
    with pytest.raises(ValueError, match=rf"`labels` must lie in 0\.\.3, one center for each, got {found}\. Call"):
        make()(embeddings, labels)


@pytest.mark.parametrize(
    ("embeddings", "labels", "error", "message"),
    [
        (
            torch.zeros(4, 7),
            torch.arange(4),
            ValueError,
            "built for embeddings of 6 dimensions, got 7. Build it with",
        ),
        (torch.zeros(4, D), torch.arange(3), ValueError, r"`labels` must have shape \(4,\)"),
        (torch.zeros(4, D), torch.zeros(4), TypeError, "`labels` must be integers"),
    ],
)
def test_rejects_batches_of_another_shape_or_type(embeddings, labels, error, message, unchecked_types):
    with pytest.raises(error, match=message):
        make(dtype=torch.float32)(embeddings, labels)


def test_rejects_embeddings_and_centers_of_another_dimension():
    loss = SynthesisRankingLoss(D)
    message = r"SynthesisRankingLoss was built for embeddings of 6 dimensions, got 7\. Build it with embedding size 7"
    for check in (lambda: UDMLSSLoss(loss).check_fits(None, 7), lambda: loss.set_centers(torch.zeros(K, 7))):
        with pytest.raises(ValueError, match=message):
            check()
    UDMLSSLoss(loss).check_fits(17, D)
