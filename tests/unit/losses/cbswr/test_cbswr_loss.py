"""CBSwRLoss, compared with loops over images, and the gradients of its terms."""

import math

import pytest
import torch
from loss_checks import assert_finite, train
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel
from udmlss.losses import CBSwRLoss, CBSwRTerms, CenterSoftmaxLoss, ClusteringHead, Decoder

B, K, D, F, SIDE = 10, 4, 6, 16, 8


class Network(nn.Module):
    """A small network whose feature maps are accessible before the pooling."""

    def __init__(self, embedder=None):
        super().__init__()
        self.maps = nn.Conv2d(1, F, 4, stride=4)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.model = EmbeddingModel(nn.Sequential(self.maps, self.pool), embedder or nn.Linear(F, D))

    def embed_maps(self, maps):
        return self.model.embed_features(self.pool(maps))


def make_criterion(**settings):
    return CBSwRLoss(ClusteringHead(D, K), Decoder((F, 2, 2), (1, SIDE, SIDE)), **settings)


def make_batch(b=B, dtype=torch.float32):
    """Return first and second views."""
    return torch.randn(2, b, 1, SIDE, SIDE, dtype=dtype)


def run(criterion, network, views, second_views):
    with torch.no_grad():
        second = network.model(second_views)
    return criterion.terms(network.maps(views), second, views, network.embed_maps)


def assign_all(criterion, cluster):
    """Change the head so that it assigns every image to one cluster."""
    with torch.no_grad():
        criterion.head.layers[2].weight.zero_()
        criterion.head.layers[2].bias.zero_()[cluster] = 5


def naive_terms(criterion, network, views, second_views):
    """Return the metric, information and reconstruction losses, computed image by image."""
    maps, embeddings, second = network.maps(views), network.model(views), network.model(second_views)
    probabilities = criterion.head(embeddings).softmax(dim=1)
    clusters = probabilities.argmax(dim=1).tolist()
    members = {j: [i for i, cluster in enumerate(clusters) if cluster == j] for j in set(clusters)}
    mean_maps = {j: sum(maps[i] for i in rows) / len(rows) for j, rows in members.items()}
    centers = {j: network.embed_maps(mean_map.unsqueeze(0))[0] for j, mean_map in mean_maps.items()}
    metric = reconstruction = 0.0
    for i, own in enumerate(clusters):
        positive = math.exp((embeddings[i] @ second[i]).item() / 0.1)
        negatives = [math.exp((embeddings[i] @ centers[j]).item() / 0.1) for j in centers if j != own]
        total = positive + sum(negatives)
        metric -= math.log(positive / total) + sum(math.log(1 - negative / total) for negative in negatives)
        reconstruction += ((criterion.decoder(mean_maps[own].unsqueeze(0))[0] - views[i]) ** 2).mean().item()
    conditional = sum(entropy(row) for row in probabilities.tolist()) / len(views)
    information = -(entropy(probabilities.mean(0).tolist()) - conditional) / math.log(probabilities.shape[1])
    return metric / len(views), information, reconstruction / len(views)


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize(("b", "k"), [(10, 4), (4, 4), (20, 2)])
def test_terms_equal_the_definition(b, k):
    criterion = CBSwRLoss(ClusteringHead(D, k), Decoder((F, 2, 2), (1, SIDE, SIDE))).double().eval()
    network, (views, second_views) = Network().double(), make_batch(b, dtype=torch.float64)
    terms = run(criterion, network, views, second_views)
    metric, information, reconstruction = naive_terms(criterion, network, views, second_views)
    assert isinstance(terms, CBSwRTerms)
    assert terms.total.dtype == torch.float64
    assert terms.metric.item() == pytest.approx(metric, abs=1e-6)
    assert terms.information.item() == pytest.approx(information, abs=1e-6)
    assert terms.reconstruction.item() == pytest.approx(reconstruction, abs=1e-6)


@pytest.mark.parametrize("weights", [(0.9, 0.3, 0.001), (0, 2, 3), (1, 0, 0)])
def test_forward_returns_the_weighted_sum_of_the_terms(weights):
    names = ("metric_weight", "information_weight", "reconstruction_weight")
    criterion, network = make_criterion(**dict(zip(names, weights, strict=True))).eval(), Network()
    views, second_views = make_batch()
    terms = run(criterion, network, views, second_views)
    expected = weights[0] * terms.metric + weights[1] * terms.information + weights[2] * terms.reconstruction
    torch.testing.assert_close(terms.total, expected)
    second = network.model(second_views)
    torch.testing.assert_close(criterion(network.maps(views), second, views, network.embed_maps), terms.total)


def test_defaults_are_the_published_settings():
    criterion = CBSwRLoss(ClusteringHead(D), None)
    weights = (criterion.metric_weight, criterion.information_weight, criterion.reconstruction_weight)
    assert weights == (0.9, 0.3, 0.001)
    assert criterion.metric_loss.temperature == 0.1
    assert criterion.head.n_clusters == criterion.head.layers[2].out_features == 32


def test_gradient_of_information_and_reconstruction_equals_finite_differences():
    criterion, network = make_criterion().double().eval(), Network().double()
    views, second_views = make_batch(4, dtype=torch.float64)
    second, maps = network.model(second_views).detach(), network.maps(views).detach().requires_grad_()

    def information_and_reconstruction(maps):  # the metric loss has no gradient with respect to the centers
        terms = criterion.terms(maps, second, views, network.embed_maps)
        return terms.information + terms.reconstruction

    assert torch.autograd.gradcheck(information_and_reconstruction, (maps,), fast_mode=True)


def test_all_parameters_receive_gradients_and_second_views_do_not():
    criterion, network = make_criterion(), Network()
    views, second_views = make_batch()
    second = network.model(second_views.requires_grad_())
    criterion(network.maps(views), second, views, network.embed_maps).backward()
    assert second_views.grad is None
    for parameter in [*network.parameters(), *criterion.parameters()]:
        assert parameter.grad.isfinite().all()
    for layer in (network.maps, network.model.embedder, criterion.head.layers[2], criterion.decoder.layers[-1]):
        assert layer.weight.grad.any()


def test_reconstruction_has_a_gradient_for_all_maps():
    criterion, network = make_criterion(), Network()
    views, second_views = make_batch()
    maps = network.maps(views).detach().requires_grad_()
    criterion.terms(maps, network.model(second_views), views, network.embed_maps).reconstruction.backward()
    assert (maps.grad != 0).flatten(1).any(dim=1).all()


def test_metric_loss_has_no_gradient_for_the_centers():
    criterion, network = make_criterion(), Network()
    views, _ = make_batch()
    maps = network.maps(views)
    detached = network.embed_maps(maps).detach()  # a gradient could only flow through the centers
    terms = criterion.terms(maps, detached, views, lambda rows: detached if rows is maps else network.embed_maps(rows))
    assert terms.metric > 0
    assert not terms.metric.requires_grad


@pytest.mark.parametrize("embedder", [nn.Linear(F, D), nn.Sequential(nn.Linear(F, D), nn.BatchNorm1d(D))])
def test_metric_loss_is_zero_if_all_images_are_in_one_cluster(embedder):
    criterion, network = make_criterion(), Network(embedder)
    assign_all(criterion, 2)
    terms = run(criterion, network, *make_batch())
    assert terms.metric == 0
    assert terms.information.item() == pytest.approx(0, abs=1e-6)
    assert terms.reconstruction > 0
    assert_finite(terms.total, *network.parameters(), *criterion.parameters())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_images_give_a_finite_loss_and_gradient(value):
    criterion, network = make_criterion(), Network()
    views = torch.full((B, 1, SIDE, SIDE), value)
    with torch.no_grad():
        network.maps.bias.zero_()
        network.model.embedder.bias.zero_()  # embeddings of zero images are zero vectors
    terms = run(criterion, network, views, views)
    assert all(part.isfinite() for part in vars(terms).values())
    assert_finite(terms.total, *network.parameters(), *criterion.parameters())


def test_reconstruction_loss_is_zero_without_a_decoder():
    network, batch = Network(), make_batch()
    criterion = CBSwRLoss(ClusteringHead(D, K, dropout=0), None)
    terms = run(criterion, network, *batch)
    assert terms.reconstruction == 0
    torch.testing.assert_close(terms.total, 0.9 * terms.metric + 0.3 * terms.information)


def test_uses_another_metric_loss():
    views, second_views = make_batch()
    network, criterion = Network(), make_criterion(metric_loss=CenterSoftmaxLoss(1.0, negative_weight=0)).eval()
    default = make_criterion().eval()
    default.head.load_state_dict(criterion.head.state_dict())
    value, default_value = (run(loss, network, views, second_views).metric for loss in (criterion, default))
    assert value != default_value


def test_parameters_are_those_of_head_and_decoder():
    criterion = make_criterion()
    assert {name.split(".")[0] for name, _ in criterion.named_parameters()} == {"head", "decoder"}


@pytest.mark.parametrize("autocast", [True, False])
def test_computes_the_loss_of_bfloat16_maps_in_float32(autocast):
    criterion, network = make_criterion().eval(), Network()
    views, second_views = make_batch()
    expected = run(criterion, network, views, second_views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, second = network.maps(views), network.model(second_views)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = criterion.terms(maps, second, views, network.embed_maps)
    assert maps.dtype == torch.bfloat16
    assert {part.dtype for part in vars(terms).values()} == {torch.float32}
    assert terms.reconstruction.item() == pytest.approx(expected.reconstruction.item(), rel=0.05)
    terms.total.backward()


def test_training_lowers_all_terms_and_separates_different_images():
    torch.manual_seed(1)
    patterns = torch.randn(8, 1, SIDE, SIDE)[torch.arange(8).repeat(4)]
    criterion, network = make_criterion(), Network()
    history = []

    def compute():
        views, second_views = (patterns + 0.1 * torch.randn_like(patterns) for _ in range(2))
        history.append(run(criterion, network, views, second_views))
        return history[-1].total

    train(compute, [*network.parameters(), *criterion.parameters()], lr=1e-2, steps=40)
    for part in ("total", "metric", "information", "reconstruction"):
        first, last = (sum(getattr(terms, part).item() for terms in ten) for ten in (history[:10], history[-10:]))
        assert last < first
    embeddings = functional.normalize(network.model(patterns), dim=1)
    same = torch.arange(8).repeat(4)[:, None] == torch.arange(8).repeat(4)
    similarity = embeddings @ embeddings.T
    assert similarity[same].min() > similarity[~same].mean()


# Errors


@pytest.mark.parametrize("b", [1, 3])
def test_rejects_batches_with_fewer_images_than_clusters(b):
    criterion, network = make_criterion(), Network()
    message = rf"A batch must have at least 4 images, one per cluster of the head, got {b}\. Use larger batches, drop"
    with pytest.raises(ValueError, match=message):
        run(criterion, network, *make_batch(b))


def test_rejects_images_of_another_shape_than_decoded_ones(unchecked_types):
    criterion, network = make_criterion(), Network()
    views, second_views = make_batch()
    maps, second = network.maps(views), network.model(second_views)
    with pytest.raises(ValueError, match=r"The decoder must return images of the shape of `images`, got \(1, 8, 8\)"):
        criterion(maps, second, views[:, :, :4, :4], network.embed_maps)
