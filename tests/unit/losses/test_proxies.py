"""Numbers of classes and dimensions of class weights, and their rotation to cluster centers."""

import warnings

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.nn import functional

from udmlss.losses.proxies import check_fits, match_proxies, move_proxies

K, D = 4, 6
SHAPES = [(4, 6), (6, 4), (5, 5)]

# The parameter that holds the class weights, whether a class is one of its rows, and the number of weights per class.
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
SEVERAL = [name for name, (_, _, n_weights) in LAYOUTS.items() if n_weights > 1]


def make(name, k=K, d=D):
    sizes = {"num_classes": k, "embedding_size": d}
    if name == "P2SGradLoss":
        sizes = {"num_classes": k, "descriptors_dim": d}
    if name == "ManifoldLoss":
        sizes = {"K": k, "l": d}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # LargeMarginSoftmaxLoss with NumPy 2
        return getattr(losses, name)(**sizes)


def weights_by_class(loss):
    """Return, for each class, a list of its weights (d,)."""
    parameter, by_row, n_weights = LAYOUTS[type(loss).__name__]
    weight = getattr(loss, parameter).detach().clone()
    n_vectors = weight.shape[0] if by_row else weight.shape[1]
    vectors = [weight[i] if by_row else weight[:, i] for i in range(n_vectors)]
    return [vectors[i : i + n_weights] for i in range(0, n_vectors, n_weights)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_fits_accepts_any_number_of_clusters_and_only_the_dimension_of_the_loss(name):
    for k, d in SHAPES:
        loss = make(name, k, d)
        for n_clusters in (k, k + 1, None):
            check_fits(loss, n_clusters, d)
            check_fits(loss, n_clusters, None)
        message = rf"{name} was built for embeddings of {d} dimensions, got 512\. Build it with embedding size 512\."
        with pytest.raises(ValueError, match=message):
            check_fits(loss, k, 512)


@pytest.mark.parametrize("learn_beta", [True, False])
def test_check_fits_counts_the_margins_of_margin_loss(learn_beta):
    loss = losses.MarginLoss(learn_beta=learn_beta, num_classes=K)
    check_fits(loss, K, D)
    check_fits(loss, None, D)
    with pytest.raises(ValueError, match=r"MarginLoss has parameters for 4 clusters .* got 5\. Use Clus.*\(4\), or"):
        check_fits(loss, K + 1, D)


def state_by_class(optimizer, loss):
    """Return, for each class, its part of both averages of Adam."""
    name, by_row, n_weights = LAYOUTS[type(loss).__name__]
    state = optimizer.state[getattr(loss, name)]
    averages = torch.stack([state[key] if by_row else state[key].T for key in ("exp_avg", "exp_avg_sq")])
    return averages.unflatten(1, (-1, n_weights)).transpose(0, 1)


def take_step(loss, optimizer, k):
    """Take a step on four unit embeddings per class."""
    rows, labels = nn.functional.normalize(torch.randn(4 * k, D)), torch.arange(4 * k) % k
    optimizer.zero_grad()
    (loss(rows, indices_tuple=labels) if isinstance(loss, losses.ManifoldLoss) else loss(rows, labels)).backward()
    optimizer.step()


@pytest.mark.parametrize("name", LAYOUTS)
def test_resized_weights_and_their_optimizer_state_belong_to_the_same_clusters(name):
    loss, k = make(name), K
    parameter = getattr(loss, LAYOUTS[name][0])
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    for n_clusters, previous_ids in (
        (K + 3, None),
        (2, None),
        (2 * K, [0, 1] + [-1] * (2 * K - 2)),
        (3, [0, 2 * K - 1, 2]),  # the last cluster remains and gets the id of one that vanished
        (3, [0, -1, 2]),
        (K, None),
    ):
        take_step(loss, optimizer, k)
        before, state = weights_by_class(loss), state_by_class(optimizer, loss)
        ids = None if previous_ids is None else torch.tensor(previous_ids)
        match_proxies(loss, n_clusters, optimizer, previous_ids=ids)
        after, new_state = weights_by_class(loss), state_by_class(optimizer, loss)
        assert len(after) == len(new_state) == n_clusters
        for cluster, previous in enumerate(range(n_clusters) if previous_ids is None else previous_ids):
            source = previous if 0 <= previous < k else cluster % k
            assert all(map(torch.equal, after[cluster], before[source]))
            expected = state[previous] if 0 <= previous < k else torch.zeros_like(state[0])
            assert torch.equal(new_state[cluster], expected)
        assert state.any()
        k = n_clusters
    assert getattr(loss, LAYOUTS[name][0]) is parameter
    take_step(loss, optimizer, K)


def test_resizing_trained_weights_needs_the_optimizer():
    loss = make("ProxyAnchorLoss")
    match_proxies(loss, K + 1, None)
    take_step(loss, torch.optim.SGD(loss.parameters(), lr=0.1), K + 1)
    match_proxies(loss, K + 1, None)
    with pytest.raises(ValueError, match=r"ProxyAnchorLoss needs `optimizer` to change from 5 to 9 clusters, got None"):
        match_proxies(loss, 9, None)


@pytest.mark.parametrize(
    "loss",
    [
        losses.MultiSimilarityLoss(2, 40, 0.5),
        losses.MarginLoss(),
        losses.MarginLoss(learn_beta=True),
        losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=D),
        nn.Linear(3, 9),  # has a parameter `weight`, but is not a loss of PML
    ],
)
def test_losses_without_class_weights_accept_all_sizes_and_do_not_change(loss):
    before = [parameter.clone() for parameter in loss.parameters()]
    check_fits(loss, 17, 23)
    move_proxies(loss, torch.randn(17, 23))
    assert all(map(torch.equal, before, loss.parameters()))


def cosines_with_centers(loss, centers):
    """Return the cosine of each class's mean weight and its center, after subtracting the mean of all centers."""
    means = torch.stack([functional.normalize(torch.stack(weights)).mean(dim=0) for weights in weights_by_class(loss)])
    return functional.cosine_similarity(means, centers - centers.mean(dim=0))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_mean_direction_of_a_class_becomes_that_of_its_center_and_lengths_are_preserved(name):
    for k, d in [(4, 16), (16, 16)] if name in SEVERAL else SHAPES:
        loss, centers = make(name, k, d), 3 * torch.randn(k, d) + 2
        before = weights_by_class(loss)
        move_proxies(loss, centers)
        torch.testing.assert_close(cosines_with_centers(loss, centers), torch.ones(k), atol=1e-4, rtol=0)
        for weights, old in zip(weights_by_class(loss), before, strict=True):
            torch.testing.assert_close(torch.stack(weights).norm(dim=1), torch.stack(old).norm(dim=1))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("constant", [True, False])
def test_angles_between_the_weights_of_a_class_are_preserved_over_many_rounds(name, constant):
    loss, centers = make(name, K, 16), torch.randn(K, 16)
    before = weights_by_class(loss)
    for _ in range(30):
        move_proxies(loss, centers if constant else torch.randn(K, 16))
    for old, new in zip(before, weights_by_class(loss), strict=True):
        old_units, new_units = (functional.normalize(torch.stack(weights)) for weights in (old, new))
        torch.testing.assert_close(new_units @ new_units.T, old_units @ old_units.T, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_equal_centers_do_not_move_the_weights_again(name):
    loss, centers = make(name), torch.randn(K, D)
    move_proxies(loss, centers)
    before = [parameter.clone() for parameter in loss.parameters()]
    move_proxies(loss, centers)
    torch.testing.assert_close(before, list(map(torch.Tensor.clone, loss.parameters())), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_move_to_an_opposite_center(name):
    loss, centers = make(name), torch.randn(K, D)
    move_proxies(loss, -centers)
    move_proxies(loss, centers)
    torch.testing.assert_close(cosines_with_centers(loss, centers), torch.ones(K), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_is_invariant_to_the_scale_of_centers(name, scale):
    for seed in range(3):
        centers = torch.randn(K, D, generator=torch.Generator().manual_seed(seed))
        loss, scaled = make(name), make(name)
        scaled.load_state_dict(loss.state_dict())
        move_proxies(loss, centers)
        move_proxies(scaled, scale * centers)
        for a, b in zip(loss.parameters(), scaled.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_moves_the_parameter_of_the_optimizer_in_place(name):
    loss = make(name)
    [parameter] = loss.parameters()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    move_proxies(loss, torch.randn(K, D))
    assert optimizer.param_groups[0]["params"][0] is getattr(loss, LAYOUTS[name][0])
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.grad is None


def test_float64_centers_leave_the_weights_in_float32():
    loss, centers = make("ProxyAnchorLoss"), torch.randn(K, D, dtype=torch.float64)
    move_proxies(loss, centers)
    assert loss.proxies.dtype == torch.float32
    torch.testing.assert_close(cosines_with_centers(loss, centers.float()), torch.ones(K))
