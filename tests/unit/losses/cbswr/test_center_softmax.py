"""The center-based softmax against a loop over images and centroids."""

import math
import time

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from udmlss.losses import CenterSoftmaxLoss

K, D = 4, 6


def make_batch(b=12, k=K, d=D, dtype=torch.float64):
    """Return embeddings, second views, clusters and centroids, of any length."""
    rows = torch.randn(2, b, d, dtype=dtype)
    return rows[0].requires_grad_(), rows[1], torch.randint(k, (b,)), torch.randn(k, d, dtype=dtype)


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def by_hand(embeddings, second, clusters, centroids, *, temperature=0.1, weight=1.0):
    """Return the loss as its equation reads: image by image, centroid by centroid."""
    total = 0.0
    for i in range(len(embeddings)):
        positive = math.exp(cosine(embeddings[i], second[i]) / temperature)
        others = set(clusters.tolist()) - {int(clusters[i])}
        negatives = [math.exp(cosine(embeddings[i], centroids[j]) / temperature) for j in others]
        whole = positive + sum(negatives)
        total -= math.log(positive / whole)
        total -= weight * sum(math.log(1 - negative / whole) for negative in negatives)
    return total / len(embeddings)


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some values before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("b", "k", "d"), [(1, 1, 1), (2, 2, 1), (12, 4, 6), (5, 30, 3), (40, 3, 8)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("weight", [0, 0.1, 1.0])
def test_the_loss_is_what_a_loop_over_images_and_centroids_makes_of_the_equation(b, k, d, temperature, weight):
    batch = make_batch(b, k, d)
    loss = CenterSoftmaxLoss(temperature, negative_weight=weight)(*batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(by_hand(*batch, temperature=temperature, weight=weight), abs=1e-6)


@given(found=st.lists(st.integers(0, K - 1), min_size=1, max_size=12), seed=st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_the_loss_holds_for_any_clusters_some_of_them_empty(found, seed):
    torch.manual_seed(seed)
    embeddings, second, _, centroids = make_batch(len(found))
    clusters = torch.tensor(found)
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert loss.item() == pytest.approx(by_hand(embeddings, second, clusters, centroids), abs=1e-6)
    assert gradient.isfinite().all()


def test_the_published_settings_are_the_default():
    loss = CenterSoftmaxLoss()
    assert (loss.temperature, loss.negative_weight) == (0.1, 1.0)


def test_the_positive_is_a_probability_so_that_its_term_is_never_below_zero():
    embeddings, _, clusters, centroids = make_batch()
    loss = CenterSoftmaxLoss(negative_weight=0)(embeddings, embeddings.detach(), clusters, centroids)
    assert loss > 0


def test_without_weight_of_the_negatives_it_is_the_cross_entropy_of_the_second_view():
    embeddings, second, _, centroids = make_batch(K)
    clusters = torch.arange(K)
    images, views, centers = (functional.normalize(rows) for rows in (embeddings, second, centroids))
    others = [(images @ centers.T)[i, torch.arange(K) != i] for i in range(K)]
    logits = torch.cat([(images * views).sum(1, keepdim=True), torch.stack(others)], dim=1) / 0.1
    expected = functional.cross_entropy(logits, torch.zeros(K, dtype=torch.int64))
    torch.testing.assert_close(CenterSoftmaxLoss(negative_weight=0)(embeddings, second, clusters, centroids), expected)


def test_the_gradient_is_that_of_finite_differences():
    embeddings, *others = make_batch()
    assert torch.autograd.gradcheck(lambda rows: CenterSoftmaxLoss()(rows, *others), (embeddings,))


def test_second_views_and_centroids_get_no_gradient():
    embeddings, second, clusters, centroids = make_batch()
    CenterSoftmaxLoss()(embeddings, second.requires_grad_(), clusters, centroids.requires_grad_()).backward()
    assert embeddings.grad.any()
    assert second.grad is None
    assert centroids.grad is None


def test_the_order_of_images_and_the_names_of_clusters_make_no_difference():
    embeddings, second, clusters, centroids = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    rows, names = torch.randperm(len(clusters)), torch.randperm(K)
    renamed = torch.empty_like(centroids)
    renamed[names] = centroids
    torch.testing.assert_close(CenterSoftmaxLoss()(embeddings[rows], second[rows], clusters[rows], centroids), loss)
    torch.testing.assert_close(CenterSoftmaxLoss()(embeddings, second, names[clusters], renamed), loss)


def test_lengths_make_no_difference():
    embeddings, second, clusters, centroids = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    torch.testing.assert_close(CenterSoftmaxLoss()(1e4 * embeddings, 1e-4 * second, clusters, 3 * centroids), loss)


@pytest.mark.parametrize("value", [torch.nan, 1e30, 0.0])
def test_the_centroid_of_a_cluster_without_images_is_not_looked_at(value):
    embeddings, second, clusters, centroids = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    expected = torch.autograd.grad(loss, embeddings)
    longer = torch.cat([centroids, torch.full((2, D), value, dtype=torch.float64)])
    more = CenterSoftmaxLoss()(embeddings, second, clusters, longer)
    torch.testing.assert_close(more, loss)
    torch.testing.assert_close(torch.autograd.grad(more, embeddings), expected)


def test_where_all_images_are_in_one_cluster_the_loss_is_zero_with_a_gradient():
    embeddings, second, _, centroids = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, torch.full((12,), 2), centroids)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("what", ["zeros", "equal", "equal centroids"])
def test_degenerate_rows_give_a_finite_loss_and_gradient(what):
    embeddings, second, clusters, centroids = make_batch(dtype=torch.float32)
    if what == "zeros":
        embeddings, second, centroids = (torch.zeros_like(rows) for rows in (embeddings, second, centroids))
    if what == "equal":
        embeddings = second = torch.ones_like(second)
    if what == "equal centroids":
        centroids = torch.ones_like(centroids)
    embeddings = embeddings.detach().requires_grad_()
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.001])
def test_a_wrong_centroid_that_is_certain_to_the_last_digit_has_the_loss_it_should(temperature):
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    second, centroids = -embeddings.detach(), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    loss = CenterSoftmaxLoss(temperature)(embeddings, second, torch.tensor([0, 1]), centroids)
    loss.backward()
    attract = 2 / temperature + math.log1p(math.exp(-2 / temperature))  # the logits differ by 2 / t
    assert loss.item() == pytest.approx(2 * attract, rel=1e-6)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_in_float32_also_under_autocast(dtype):
    embeddings, second, clusters, centroids = make_batch(dtype=dtype)
    expected = by_hand(*(rows.double() for rows in (embeddings.detach(), second)), clusters, centroids.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_clusters_in_int32_do_as_well(untyped):
    embeddings, second, clusters, centroids = make_batch()
    expected = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
    assert CenterSoftmaxLoss()(embeddings, second, clusters.int(), centroids) == expected


def test_training_finds_the_second_view_among_the_centroids():
    embeddings, second, clusters, centroids = make_batch(16, k=8, d=16, dtype=torch.float32)
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    for _ in range(50):
        loss = CenterSoftmaxLoss()(embeddings, second, clusters, centroids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = functional.cosine_similarity(embeddings, second)
    others = functional.cosine_similarity(embeddings.unsqueeze(1), centroids, dim=2)
    others[torch.arange(16), clusters] = -1
    assert (found > others.max(dim=1).values).all()


# What is refused


@pytest.mark.parametrize("shape", ["second", "one second", "centers"])
def test_shapes_that_do_not_fit_are_refused(shape, untyped):
    embeddings, second, clusters, centroids = make_batch()
    second = {"second": second[:-1], "one second": second[:1]}.get(shape, second)
    centroids = centroids[:, :-1] if shape == "centers" else centroids
    sentence = r"must have one shape \(b d\), and `centroids` their dimension, got \(12, 6\), .*\. Embed all three with"
    with pytest.raises(ValueError, match=sentence):
        CenterSoftmaxLoss()(embeddings, second, clusters, centroids)


@pytest.mark.parametrize(("row", "found"), [(K, "0 to 4"), (-1, "-1 to 3")])
def test_a_cluster_without_a_centroid_is_refused(row, found):
    embeddings, second, _, centroids = make_batch(K + 1)
    clusters = torch.tensor([0, 1, 2, 3, row])
    with pytest.raises(ValueError, match=rf"`clusters` must lie in 0\.\.3, got {found}\. Pass one centroid for"):
        CenterSoftmaxLoss()(embeddings, second, clusters, centroids)


def test_clusters_that_are_no_whole_numbers_or_not_one_per_image_are_refused(untyped):
    embeddings, second, clusters, centroids = make_batch()
    with pytest.raises(TypeError, match=r"`clusters` must be whole numbers, got torch\.float32"):
        CenterSoftmaxLoss()(embeddings, second, clusters.float(), centroids)
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(12,\)"):
        CenterSoftmaxLoss()(embeddings, second, clusters[:-1], centroids)


def test_embeddings_that_are_not_finite_are_refused():
    embeddings, *others = make_batch()
    with pytest.raises(ValueError, match="`embeddings` must be finite, got 12 of 12 rows"):
        CenterSoftmaxLoss()(embeddings * torch.nan, *others)


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match=rf"`temperature` must be above 0, got {temperature}\. Raise it"):
        CenterSoftmaxLoss(temperature)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"`negative_weight` must be at least 0, got -1"):
        CenterSoftmaxLoss(negative_weight=-1)


def test_it_is_at_least_ten_times_as_fast_as_the_loop():
    batch = make_batch(512, 32, 512, dtype=torch.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        CenterSoftmaxLoss()(*batch)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    by_hand(*batch)
    assert time.perf_counter() - start > 10 * min(times)
