"""The whole of CBSwR against its parts written as loops, and what each part teaches."""

import math

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional

from udmlss import EmbeddingModel
from udmlss.losses import CBSwRLoss, CBSwRTerms, CenterSoftmaxLoss, ClusteringHead, Decoder

B, K, D, F, SIDE = 10, 4, 6, 16, 8


class Network(nn.Module):
    """A small network whose maps can be taken before its pooling."""

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


def put_into(criterion, cluster):
    """Let the head put every image into one cluster."""
    with torch.no_grad():
        criterion.head.layers[2].weight.zero_()
        criterion.head.layers[2].bias.zero_()[cluster] = 5


def by_hand(criterion, network, views, second_views):
    """Return metric, information and reconstruction loss as the method reads, image by image."""
    maps, embeddings, second = network.maps(views), network.model(views), network.model(second_views)
    shares = criterion.head(embeddings).softmax(dim=1)
    clusters = shares.argmax(dim=1).tolist()
    centroids = {j: sum(maps[i] for i in members(clusters, j)) / len(members(clusters, j)) for j in set(clusters)}
    centers = {j: network.embed_maps(centroid.unsqueeze(0))[0] for j, centroid in centroids.items()}
    metric = reconstruction = 0.0
    for i, own in enumerate(clusters):
        positive = math.exp((embeddings[i] @ second[i]).item() / 0.1)
        negatives = [math.exp((embeddings[i] @ centers[j]).item() / 0.1) for j in centers if j != own]
        whole = positive + sum(negatives)
        metric -= math.log(positive / whole) + sum(math.log(1 - negative / whole) for negative in negatives)
        reconstruction += ((criterion.decoder(centroids[own].unsqueeze(0))[0] - views[i]) ** 2).mean().item()
    inside = sum(entropy(row) for row in shares.tolist()) / len(views)
    information = -(entropy(shares.mean(0).tolist()) - inside) / math.log(shares.shape[1])
    return metric / len(views), information, reconstruction / len(views)


def members(clusters, j):
    return [i for i, cluster in enumerate(clusters) if cluster == j]


def entropy(shares):
    return -sum(share * math.log(share) for share in shares if share > 0)


@pytest.mark.parametrize(("b", "k"), [(10, 4), (4, 4), (40, 2)])
def test_the_terms_are_what_a_loop_over_images_makes_of_the_method(b, k):
    criterion = CBSwRLoss(ClusteringHead(D, k), Decoder((F, 2, 2), (1, SIDE, SIDE))).double().eval()
    network, (views, second_views) = Network().double(), make_batch(b, dtype=torch.float64)
    terms = run(criterion, network, views, second_views)
    metric, information, reconstruction = by_hand(criterion, network, views, second_views)
    assert isinstance(terms, CBSwRTerms)
    assert terms.total.dtype == torch.float64
    assert terms.metric.item() == pytest.approx(metric, abs=1e-6)
    assert terms.information.item() == pytest.approx(information, abs=1e-6)
    assert terms.reconstruction.item() == pytest.approx(reconstruction, abs=1e-6)


@pytest.mark.parametrize("weights", [(0.9, 0.3, 0.001), (0, 2, 3), (1, 0, 0)])
def test_the_total_is_the_weighted_sum_and_what_calling_returns(weights):
    names = ("metric_weight", "information_weight", "reconstruction_weight")
    criterion, network = make_criterion(**dict(zip(names, weights, strict=True))).eval(), Network()
    views, second_views = make_batch()
    terms = run(criterion, network, views, second_views)
    expected = sum(
        w * part for w, part in zip(weights, (terms.metric, terms.information, terms.reconstruction), strict=True)
    )
    torch.testing.assert_close(terms.total, expected)
    second = network.model(second_views)
    torch.testing.assert_close(criterion(network.maps(views), second, views, network.embed_maps), terms.total)


def test_the_published_settings_are_the_default():
    criterion = CBSwRLoss(ClusteringHead(D), None)
    weights = (criterion.metric_weight, criterion.information_weight, criterion.reconstruction_weight)
    assert weights == (0.9, 0.3, 0.001)
    assert criterion.metric_loss.temperature == 0.1
    assert criterion.head.n_clusters == criterion.head.layers[2].out_features == 32


def test_the_gradient_is_that_of_finite_differences():
    criterion, network = make_criterion().double().eval(), Network().double()
    views, second_views = make_batch(4, dtype=torch.float64)
    second, maps = network.model(second_views).detach(), network.maps(views).detach().requires_grad_()

    def all_but_the_metric_loss(maps):  # that takes the centroids as they are: finite differences would move them
        terms = criterion.terms(maps, second, views, network.embed_maps)
        return terms.information + terms.reconstruction

    assert torch.autograd.gradcheck(all_but_the_metric_loss, (maps,))


def test_every_part_learns_and_second_views_do_not():
    criterion, network = make_criterion(), Network()
    views, second_views = make_batch()
    second = network.model(second_views.requires_grad_())
    criterion(network.maps(views), second, views, network.embed_maps).backward()
    assert second_views.grad is None
    for parameter in [*network.parameters(), *criterion.parameters()]:
        assert parameter.grad.isfinite().all()
    for learned in (network.maps, network.model.embedder, criterion.head.layers[2], criterion.decoder.layers[-1]):
        assert learned.weight.grad.any()


def test_reconstruction_moves_the_maps():
    criterion, network = make_criterion(), Network()
    views, second_views = make_batch()
    maps = network.maps(views).detach().requires_grad_()
    criterion.terms(maps, network.model(second_views), views, network.embed_maps).reconstruction.backward()
    assert (maps.grad != 0).flatten(1).any(dim=1).all()


def test_the_metric_loss_takes_the_centroids_as_they_are():
    criterion, network = make_criterion(), Network()
    views, _ = make_batch()
    maps = network.maps(views)
    known = network.embed_maps(maps).detach()  # so that centroids are the only way back to the network
    terms = criterion.terms(maps, known, views, lambda found: known if found is maps else network.embed_maps(found))
    assert terms.metric > 0
    assert not terms.metric.requires_grad


def test_the_order_of_images_makes_no_difference():
    criterion, network, rows = make_criterion().double().eval(), Network().double(), torch.randperm(B)
    views, second_views = make_batch(dtype=torch.float64)
    expected = run(criterion, network, views, second_views)
    found = run(criterion, network, views[rows], second_views[rows])
    torch.testing.assert_close(vars(found), vars(expected))


def test_renaming_the_head_s_clusters_makes_no_difference():
    criterion, network = make_criterion().double().eval(), Network().double()
    views, second_views = make_batch(dtype=torch.float64)
    expected = run(criterion, network, views, second_views)
    names = torch.randperm(K)
    with torch.no_grad():
        criterion.head.layers[2].weight.copy_(criterion.head.layers[2].weight[names])
        criterion.head.layers[2].bias.copy_(criterion.head.layers[2].bias[names])
    torch.testing.assert_close(vars(run(criterion, network, views, second_views)), vars(expected))


@pytest.mark.parametrize("embedder", [nn.Linear(F, D), nn.Sequential(nn.Linear(F, D), nn.BatchNorm1d(D))])
def test_where_all_images_are_in_one_cluster_there_are_no_negatives_and_the_loss_is_finite(embedder):
    criterion, network = make_criterion(), Network(embedder)
    put_into(criterion, 2)
    terms = run(criterion, network, *make_batch())
    terms.total.backward()
    assert terms.metric == 0
    assert terms.information.item() == pytest.approx(0, abs=1e-6)
    assert terms.reconstruction > 0
    assert all(parameter.grad.isfinite().all() for parameter in [*network.parameters(), *criterion.parameters()])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_that_are_all_equal_give_a_finite_loss_and_gradient(value):
    criterion, network = make_criterion(), Network()
    views = torch.full((B, 1, SIDE, SIDE), value)
    with torch.no_grad():
        network.maps.bias.zero_()
        network.model.embedder.bias.zero_()  # so that images of zeros have embeddings of zeros
    terms = run(criterion, network, views, views)
    terms.total.backward()
    assert all(part.isfinite() for part in vars(terms).values())
    assert all(parameter.grad.isfinite().all() for parameter in [*network.parameters(), *criterion.parameters()])


def test_without_a_decoder_nothing_is_reconstructed():
    network, batch = Network(), make_batch()
    criterion = CBSwRLoss(ClusteringHead(D, K, dropout=0), None)
    terms = run(criterion, network, *batch)
    assert terms.reconstruction == 0
    torch.testing.assert_close(terms.total, 0.9 * terms.metric + 0.3 * terms.information)


def test_another_metric_loss_takes_the_place_of_the_published_one():
    views, second_views = make_batch()
    network, criterion = Network(), make_criterion(metric_loss=CenterSoftmaxLoss(1.0, negative_weight=0)).eval()
    published = make_criterion().eval()
    published.head.load_state_dict(criterion.head.state_dict())
    found, expected = (run(loss, network, views, second_views).metric for loss in (criterion, published))
    assert found != expected


def test_the_criterion_holds_head_and_decoder_and_not_the_model():
    criterion = make_criterion()
    assert {name.split(".")[0] for name, _ in criterion.named_parameters()} == {"head", "decoder"}


@pytest.mark.parametrize("inside", [True, False])
def test_maps_in_half_precision_are_judged_in_float32_whether_autocast_is_on_or_off(inside):
    criterion, network = make_criterion().eval(), Network()
    views, second_views = make_batch()
    expected = run(criterion, network, views, second_views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, second = network.maps(views), network.model(second_views)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        terms = criterion.terms(maps, second, views, network.embed_maps)
    assert maps.dtype == torch.bfloat16
    assert {part.dtype for part in vars(terms).values()} == {torch.float32}
    assert terms.reconstruction.item() == pytest.approx(expected.reconstruction.item(), rel=0.05)
    terms.total.backward()


def test_training_separates_images_from_the_centroids_of_other_clusters():
    torch.manual_seed(1)
    patterns = torch.randn(8, 1, SIDE, SIDE)[torch.arange(8).repeat(8)]
    criterion, network = make_criterion(), Network()
    optimizer = torch.optim.Adam([*network.parameters(), *criterion.parameters()], lr=1e-2)
    history = []
    for _ in range(60):
        views, second_views = (patterns + 0.1 * torch.randn_like(patterns) for _ in range(2))
        terms = run(criterion, network, views, second_views)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        history.append(terms)
    for part in ("total", "metric", "information", "reconstruction"):
        first, last = (sum(getattr(terms, part).item() for terms in some) for some in (history[:10], history[-10:]))
        assert last < first
    embeddings = functional.normalize(network.model(patterns), dim=1)
    same = torch.arange(8).repeat(8)[:, None] == torch.arange(8).repeat(8)
    similarity = embeddings @ embeddings.T
    assert similarity[same].min() > similarity[~same].mean()


# What is refused


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some values before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("b", [1, 3])
def test_more_clusters_than_images_are_refused(b):
    criterion, network = make_criterion(), Network()
    sentence = rf"4 in-batch clusters need at least as many images in a batch, got {b}\. Draw larger batches, drop"
    with pytest.raises(ValueError, match=sentence):
        run(criterion, network, *make_batch(b))


def test_images_that_the_decoder_cannot_give_are_refused(untyped):
    criterion, network = make_criterion(), Network()
    views, second_views = make_batch()
    maps, second = network.maps(views), network.model(second_views)
    with pytest.raises(ValueError, match=r"The decoder must give images of the shape of `images`, got \(1, 8, 8\)"):
        criterion(maps, second, views[:, :, :4, :4], network.embed_maps)


@pytest.mark.parametrize("name", ["metric_weight", "information_weight", "reconstruction_weight"])
def test_a_negative_weight_is_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 0, got -0\.1"):
        make_criterion(**{name: -0.1})
