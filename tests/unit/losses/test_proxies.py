"""How many clusters and dimensions a loss's parameters are for, and how they follow the centroids."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from torch import nn

from udmlss.losses.proxies import check_fits, move_proxies

K, D = 4, 6

# The parameter that holds classes, whether a class is a row of it, and how many centres a class has.
LAYOUTS = {
    "ProxyNCALoss": ("proxies", True, 1),
    "ProxyAnchorLoss": ("proxies", True, 1),
    "ManifoldLoss": ("proxies", True, 1),
    "ArcFaceLoss": ("W", False, 1),
    "CosFaceLoss": ("W", False, 1),
    "LargeMarginSoftmaxLoss": ("W", False, 1),
    "NormalizedSoftmaxLoss": ("W", False, 1),
    "SphereFaceLoss": ("W", False, 1),
    "P2SGradLoss": ("weight", False, 1),
    "SubCenterArcFaceLoss": ("W", False, 3),
    "SoftTripleLoss": ("fc", False, 10),
}
SINGLE = [name for name, (_, _, centres) in LAYOUTS.items() if centres == 1]
SEVERAL = [name for name, (_, _, centres) in LAYOUTS.items() if centres > 1]


def make(name, k=K, d=D):
    sizes = {"num_classes": k, "embedding_size": d}
    if name == "P2SGradLoss":
        sizes = {"num_classes": k, "descriptors_dim": d}
    if name == "ManifoldLoss":
        sizes = {"K": k, "l": d}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # LargeMarginSoftmaxLoss, by numpy 2
        return getattr(losses, name)(**sizes)


def centres_of(loss):
    """Return a list of the centres of each class, each a tensor (d), read one by one."""
    parameter, by_row, centres = LAYOUTS[type(loss).__name__]
    weight = getattr(loss, parameter).detach().clone()
    n_vectors = weight.shape[0] if by_row else weight.shape[1]
    vectors = [weight[i] if by_row else weight[:, i] for i in range(n_vectors)]
    return [vectors[i : i + centres] for i in range(0, n_vectors, centres)]


def unit(vector):
    return vector / vector.norm()


def cosine(a, b):
    return float(unit(a) @ unit(b))


def from_the_mean(centroids):
    """Return where each centroid lies from the mean of all."""
    mean = sum(centroids) / len(centroids)
    return [centroid - mean for centroid in centroids]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("k", "d"), [(4, 6), (6, 4), (5, 5)])
def test_the_loss_fits_the_clusters_and_embeddings_it_was_built_for(name, k, d):
    check_fits(make(name, k, d), k, d)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("k", "d"), [(4, 6), (6, 4), (5, 5)])
def test_other_clusters_and_other_dimensions_are_told_apart(name, k, d):
    loss = make(name, k, d)
    with pytest.raises(ValueError, match=rf"{name} holds parameters for {k} clusters .* found {k + 1}\."):
        check_fits(loss, k + 1, d)
    with pytest.raises(ValueError, match=rf"{name} was built for embeddings of {d} dimensions, got {d + 1}\."):
        check_fits(loss, k, d + 1)


def test_the_remedies_name_the_numbers():
    with pytest.raises(
        ValueError, match=r"Use ClusterPseudoLabeler\(4\), build the loss for 9, or take a loss without"
    ):
        check_fits(make("ProxyAnchorLoss"), 9, D)
    with pytest.raises(ValueError, match=r"Build it with embedding size 512\."):
        check_fits(make("ProxyAnchorLoss"), K, 512)


def test_swapped_sizes_are_refused():
    with pytest.raises(ValueError, match="was built for embeddings of 4 dimensions, got 6"):
        check_fits(make("ArcFaceLoss", k=6, d=4), 4, 6)


@pytest.mark.parametrize("learn_beta", [True, False])
def test_a_margin_for_each_cluster_fits_only_as_many(learn_beta):
    loss = losses.MarginLoss(learn_beta=learn_beta, num_classes=K)
    check_fits(loss, K, D)
    with pytest.raises(ValueError, match="MarginLoss holds parameters for 4 clusters"):
        check_fits(loss, K + 1, D)


@pytest.mark.parametrize(
    "loss",
    [
        losses.MultiSimilarityLoss(2, 40, 0.5),
        losses.TripletMarginLoss(),
        losses.MarginLoss(),
        losses.MarginLoss(learn_beta=True),
        losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=D),
        nn.Linear(3, 9),  # has a parameter called `weight`, and is no loss of the library
    ],
)
def test_without_parameters_per_cluster_anything_fits_and_nothing_moves(loss):
    before = [parameter.clone() for parameter in loss.parameters()]
    check_fits(loss, 17, 23)
    move_proxies(loss, torch.randn(17, 23))
    assert all(map(torch.equal, before, loss.parameters()))


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize(("k", "d"), [(4, 6), (6, 4), (5, 5)])
def test_a_single_centre_takes_the_direction_of_its_centroid_and_keeps_its_length(name, k, d):
    loss, centroids = make(name, k, d), 3 * torch.randn(k, d) + 2
    before = centres_of(loss)
    move_proxies(loss, centroids)
    expected = from_the_mean(centroids)
    for cluster, [centre] in enumerate(centres_of(loss)):
        assert cosine(centre, expected[cluster]) == pytest.approx(1, abs=1e-5)
        assert centre.norm().item() == pytest.approx(before[cluster][0].norm().item(), rel=1e-5)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize(("k", "d"), [(4, 16), (16, 16)])
def test_the_mean_direction_of_several_centres_becomes_the_centroid_s(name, k, d):
    loss, centroids = make(name, k, d), torch.randn(k, d) + 2
    before = centres_of(loss)
    move_proxies(loss, centroids)
    expected = from_the_mean(centroids)
    for cluster, centres in enumerate(centres_of(loss)):
        mean = sum(unit(centre) for centre in centres)
        assert cosine(mean, expected[cluster]) == pytest.approx(1, abs=1e-4)
        for centre, old in zip(centres, before[cluster], strict=True):
            assert centre.norm().item() == pytest.approx(old.norm().item(), rel=1e-5)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("settled", [True, False])
def test_several_centres_of_a_class_keep_their_spread_over_many_rounds(name, settled):
    loss, centroids = make(name, K, 16), torch.randn(K, 16)
    before = centres_of(loss)
    for _ in range(30):
        move_proxies(loss, centroids if settled else torch.randn(K, 16))
    for old, new in zip(before, centres_of(loss), strict=True):
        for i in range(len(old)):
            for j in range(i):
                assert cosine(new[i], new[j]) == pytest.approx(cosine(old[i], old[j]), abs=1e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_centroids_that_stay_where_they_are_move_nothing(name):
    loss, centroids = make(name), torch.randn(K, D)
    move_proxies(loss, centroids)
    before = [parameter.clone() for parameter in loss.parameters()]
    move_proxies(loss, centroids)
    torch.testing.assert_close(before, list(map(torch.Tensor.clone, loss.parameters())), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_centroid_opposite_to_its_proxies_is_followed_too(name):
    loss, centroids = make(name), torch.randn(K, D)
    move_proxies(loss, -centroids)
    move_proxies(loss, centroids)
    expected = from_the_mean(centroids)
    for cluster, centres in enumerate(centres_of(loss)):
        assert cosine(sum(map(unit, centres)), expected[cluster]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=10, deadline=None)
def test_the_length_of_centroids_makes_no_difference(name, seed, scale):
    centroids = torch.randn(K, D, generator=torch.Generator().manual_seed(seed))
    one, other = make(name), make(name)
    other.load_state_dict(one.state_dict())
    move_proxies(one, centroids)
    move_proxies(other, scale * centroids)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parameter_stays_the_one_the_optimizer_holds(name):
    loss = make(name)
    [parameter] = loss.parameters()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    move_proxies(loss, torch.randn(K, D))
    assert optimizer.param_groups[0]["params"][0] is getattr(loss, LAYOUTS[name][0])
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.grad is None


def test_centroids_in_float64_leave_the_parameter_in_float32():
    loss, centroids = make("ProxyAnchorLoss"), torch.randn(K, D, dtype=torch.float64)
    move_proxies(loss, centroids)
    assert loss.proxies.dtype == torch.float32
    assert cosine(loss.proxies[0].detach().double(), from_the_mean(centroids)[0]) == pytest.approx(1, abs=1e-6)
