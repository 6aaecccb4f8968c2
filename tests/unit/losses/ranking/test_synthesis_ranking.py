"""SynthesisRankingLoss, compared with its definition, and its centers."""

import copy
import math

import pytest
import torch
from loss_checks import assert_finite, train
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


def make(dtype=torch.float64, **settings):
    """Return a loss with centers of any length and a head with a random bias."""
    loss = Recorded(D, **settings).to(dtype)
    nn.init.normal_(loss.layer.bias, std=0.1)
    loss.set_centers(2 * torch.randn(K, D))
    return loss


def make_batch(n_unassigned=0, dtype=torch.float64):
    labels = torch.cat([torch.arange(K).repeat(IMAGES_PER_CLUSTER), torch.full((n_unassigned,), -1)])
    labels = labels[torch.randperm(len(labels))]
    return torch.randn(len(labels), D, dtype=dtype).requires_grad_(), labels


def pseudo_labels(k=K, *, centers=True):
    return PseudoLabels.from_labels(torch.arange(k).repeat(2), torch.randn(2 * k, D) if centers else None)


def unit(vector):
    return vector / vector.norm()


@torch.no_grad()
def naive_loss(loss, embeddings, labels, synthetic):
    """Return the loss, computed embedding by embedding, and the number of embeddings that are similar to a center."""

    def project(vector):
        projection = unit(loss.layer.weight @ vector + loss.layer.bias)
        return projection.clamp(min=0) if loss.relu else projection

    synthetic_rows, ranking, anchor = iter(synthetic), [], []
    for embedding, label in zip(embeddings, labels, strict=True):
        source, center = unit(embedding), unit(loss.proxies[label])
        if source @ center < loss.min_similarity:
            continue
        projections = [project(row) for row in next(synthetic_rows)]
        cosines = [float(row @ project(source)) for row in projections]
        increases = [cosines[j] - cosines[i] for j in range(len(cosines)) for i in range(j)]
        ranking.append(math.log1p(sum(math.exp(loss.scale * (step + loss.margin)) for step in increases)) / loss.scale)
        margins = [loss.anchor_margin - float(row @ project(center)) for row in projections]
        anchor.append(math.log1p(sum(math.exp(loss.anchor_scale * margin) for margin in margins)))
    n = len(ranking)
    return (loss.ranking_weight * sum(ranking) + loss.anchor_weight * sum(anchor)) / max(1, n), n


@pytest.mark.parametrize("settings", [{}, {"relu": True}, {"n_synthetic": 2, "radius": 0.3, "min_similarity": -1.0}])
@pytest.mark.parametrize("weights", [(0.9, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_value_and_synthetic_embeddings_equal_the_definition(settings, weights):
    ranking_weight, anchor_weight = weights
    chosen = {"scale": 8.0, "anchor_scale": 5.0, "ranking_weight": ranking_weight, "anchor_weight": anchor_weight}
    loss, (embeddings, labels) = make(**chosen, **settings), make_batch()
    value = loss(embeddings, labels)
    expected, n = naive_loss(loss, embeddings, labels, loss.synthetic)
    assert n == len(loss.synthetic) > 3
    assert settings or n < len(labels)  # some embeddings are below the smallest similarity
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert value.dtype == torch.float64
    distances = (loss.synthetic - loss.sources.unsqueeze(1)).norm(dim=2)
    multiples = torch.arange(1, loss.n_synthetic + 1, dtype=torch.float64).expand_as(distances)
    torch.testing.assert_close(distances, loss.radius * multiples)


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

    labels, inputs = labels[:5], (embeddings[:5], loss.layer.weight, loss.layer.bias, proxies)
    inputs = tuple(one.detach().clone().requires_grad_() for one in inputs)
    assert torch.autograd.gradcheck(compute, inputs, fast_mode=True)


# Synthetic embeddings


def test_similarity_to_the_embedding_decreases_with_distance_after_normalization():
    loss = Recorded(64, min_similarity=-1.0, n_synthetic=5).double()
    loss.set_centers(torch.randn(1, 64))
    embeddings = torch.randn(2000, 64, dtype=torch.float64)
    loss(embeddings, torch.zeros(2000, dtype=torch.int64))
    normalized = functional.normalize(loss.synthetic, dim=2)
    cosines = (normalized * functional.normalize(embeddings).unsqueeze(1)).sum(2).mean(0)
    heads = torch.einsum("bnd,bd->bn", loss._project(loss.synthetic), loss._project(loss.sources)).mean(0)
    torch.testing.assert_close(heads, cosines)  # a new head is a rotation, which preserves angles
    torch.testing.assert_close((loss.layer.weight @ loss.layer.weight.T).float(), torch.eye(64))
    assert not loss.layer.bias.any()
    assert (cosines.diff() < -0.02).all()
    expected = 1 / (1 + torch.arange(1, 6, dtype=torch.float64) ** 2).sqrt()  # random directions are nearly orthogonal
    torch.testing.assert_close(cosines, expected, atol=0.02, rtol=0)


def test_directions_are_uniform_and_differ_between_embeddings_and_calls():
    loss = Recorded(3, min_similarity=-1.0, n_synthetic=4).double()
    loss.set_centers(torch.randn(1, 3))
    embeddings, labels = torch.randn(3000, 3, dtype=torch.float64), torch.zeros(3000, dtype=torch.int64)
    calls = []
    for _ in range(2):
        loss(embeddings, labels)
        calls.append(functional.normalize(loss.synthetic - loss.sources.unsqueeze(1), dim=2))
    directions = torch.stack(calls).flatten(0, 2)
    assert directions.mean(0).norm() < 0.02
    covariance = directions.T @ directions / len(directions)
    torch.testing.assert_close(covariance, torch.eye(3).double() / 3, atol=0.02, rtol=0)
    for one, other in [(calls[0], calls[1]), (calls[0][:, :1], calls[0][:, 1:]), (calls[0][:1], calls[0][1:])]:
        cosines = (one * other).sum(2)
        assert cosines.max() < 1
        assert abs(cosines.mean()) < 0.1


# Embeddings and centers


def test_the_loss_of_embeddings_that_are_nan_is_nan():
    loss, (embeddings, labels) = make(min_similarity=0.3), make_batch()
    assert loss(embeddings * torch.nan, labels).isnan()


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
    value = make(min_similarity=1.0)(embeddings, labels)
    assert value == 0
    assert not torch.autograd.grad(value, embeddings)[0].any()


DEGENERATE = {
    "one cluster": (torch.randn(6, D), torch.zeros(6)),
    "single rows": (torch.randn(K, D), torch.arange(K)),
    "duplicates": (torch.randn(1, D).repeat(6, 1), torch.arange(6) % K),
    "zeros": (torch.zeros(4, D), torch.arange(4)),
    "one row": (torch.randn(1, D), torch.zeros(1)),
    "no rows": (torch.zeros(0, D), torch.zeros(0)),
    "tiny": (1e-20 * torch.randn(6, D), torch.arange(6) % K),
    "huge": (1e18 * torch.randn(6, D), torch.arange(6) % K),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("length_of_centers", [0, 1])
def test_loss_and_gradient_of_degenerate_batches_are_finite(name, length_of_centers):
    rows, labels = DEGENERATE[name]
    loss, embeddings = make(min_similarity=-1.0, dtype=torch.float32), rows.clone().requires_grad_()
    loss.set_centers(length_of_centers * loss.proxies)
    assert_finite(loss(embeddings, labels.long()), embeddings, *loss.parameters())


def test_training_lowers_the_loss():
    torch.manual_seed(2)
    loss, labels = Recorded(16, scale=8.0).double(), torch.arange(4).repeat(16)
    centers = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q[:4]
    loss.set_centers(centers)
    embeddings = centers[labels] + 0.1 * torch.randn(64, 16, dtype=torch.float64)
    values = train(lambda: loss(embeddings, labels), loss.parameters(), lr=1e-2, steps=60)
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


# Combination with other losses


WRAPPERS = {
    "alone": UDMLSSLoss,
    "with a weight": lambda loss: UDMLSSLoss(losses.MultipleLosses([loss], weights=[0.23])),
    "with a miner": lambda loss: UDMLSSLoss(losses.MultipleLosses([loss]), miner=miners.BatchHardMiner()),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_udmlss_loss_it_is_the_loss_of_assigned_rows_in_float32(name, dtype):
    (embeddings, labels), loss = make_batch(n_unassigned=5, dtype=dtype), make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = WRAPPERS[name](loss)(embeddings, labels)
    [gradient] = torch.autograd.grad(value, embeddings)
    loss.generator.manual_seed(0)
    rows = labels.argsort(stable=True)[5:]
    expected = loss(embeddings[rows].float(), labels[rows])
    torch.testing.assert_close(value, 0.23 * expected if name == "with a weight" else expected)
    assert gradient[labels >= 0].any()
    assert not gradient[labels < 0].any()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_new_round_sets_the_centers_of_any_number_of_clusters(wrap):
    loss = SynthesisRankingLoss(D)
    assert isinstance(loss, UsesClusterCenters)
    assert not isinstance(losses.ProxyAnchorLoss(K, D), UsesClusterCenters)
    criterion = wrap(loss)
    for k in (4, 7, 3):
        pseudo = pseudo_labels(k)
        criterion.start_round(pseudo)
        assert torch.equal(loss.proxies, pseudo.centers)
        assert criterion(torch.randn(2 * k, D), pseudo.labels).isfinite()
    assert not loss.proxies.requires_grad


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
    criterion.start_round(pseudo_labels(centers=False))


def test_centers_have_the_dtype_of_the_head_and_are_not_in_the_state_dict():
    loss = SynthesisRankingLoss(D)
    loss.set_centers(torch.randn(K, D, dtype=torch.float64, requires_grad=True))
    assert loss.proxies.dtype == torch.float32
    assert not loss.proxies.requires_grad
    loss, fresh = make(), SynthesisRankingLoss(D).double()
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(fresh.layer.weight, loss.layer.weight)
    assert fresh.proxies is None


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


def test_rejects_labels_that_are_not_one_integer_per_embedding(unchecked_types):
    with pytest.raises(ValueError, match=r"`labels` must have shape \(4,\)"):
        make()(torch.zeros(4, D), torch.arange(3))
    with pytest.raises(TypeError, match="`labels` must be integers"):
        make()(torch.zeros(4, D), torch.zeros(4))


def test_rejects_embeddings_centers_and_proxies_of_another_dimension(unchecked_types):
    loss = SynthesisRankingLoss(D)
    UDMLSSLoss(loss).check_fits(17, D)
    message = r"SynthesisRankingLoss was built for embeddings of 6 dimensions, got 7\. Build it with embedding size 7"
    for use in (
        lambda: loss(torch.zeros(4, 7), torch.arange(4)),
        lambda: loss.set_centers(torch.zeros(K, 7)),
        lambda: UDMLSSLoss(loss).check_fits(None, 7),
        lambda: SynthesisRankingLoss(D, proxies=nn.Parameter(torch.zeros(K, 7))),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_proxies_must_be_a_parameter(unchecked_types):
    with pytest.raises(TypeError, match=r"`proxies` must be a parameter, got Tensor\. Pass nn\.Parameter"):
        SynthesisRankingLoss(D, proxies=torch.randn(K, D))
