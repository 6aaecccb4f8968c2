"""CenterSoftmaxLoss, compared with a loop over images and centers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import assert_finite, assert_ten_times_as_fast, train
from torch.nn import functional

from udmlss.losses import CenterSoftmaxLoss

K, D = 4, 6


def make_batch(b=12, k=K, d=D, dtype=torch.float64):
    """Return embeddings and second views of any length, clusters and centers."""
    rows = torch.randn(2, b, d, dtype=dtype)
    return rows[0].requires_grad_(), rows[1], torch.randint(k, (b,)), torch.randn(k, d, dtype=dtype)


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def naive_loss(embeddings, second, clusters, centers, *, temperature=0.1, weight=1.0):
    """Return the loss, computed image by image and center by center."""
    total = 0.0
    for i in range(len(embeddings)):
        positive = math.exp(cosine(embeddings[i], second[i]) / temperature)
        others = set(clusters.tolist()) - {int(clusters[i])}
        negatives = [math.exp(cosine(embeddings[i], centers[j]) / temperature) for j in others]
        denominator = positive + sum(negatives)
        total -= math.log(positive / denominator)
        total -= weight * sum(math.log(1 - negative / denominator) for negative in negatives)
    return total / len(embeddings)


@pytest.mark.parametrize(("b", "k", "d"), [(1, 1, 1), (2, 2, 1), (12, 4, 6), (5, 30, 3), (40, 3, 8)])
@pytest.mark.parametrize(("temperature", "weight"), [(0.1, 1.0), (0.1, 0), (1.0, 0.1)])
def test_equals_the_definition(b, k, d, temperature, weight):
    batch = make_batch(b, k, d)
    loss = CenterSoftmaxLoss(temperature, negative_weight=weight)(*batch)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(naive_loss(*batch, temperature=temperature, weight=weight), abs=1e-6)


@given(found=st.lists(st.integers(0, K - 1), min_size=1, max_size=12), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_equals_the_definition_for_any_clusters(found, seed):
    torch.manual_seed(seed)
    embeddings, second, _, centers = make_batch(len(found))
    clusters = torch.tensor(found)
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centers)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert loss.item() == pytest.approx(naive_loss(embeddings, second, clusters, centers), abs=1e-6)
    assert gradient.isfinite().all()


def test_defaults_are_the_published_settings():
    loss = CenterSoftmaxLoss()
    assert (loss.temperature, loss.negative_weight) == (0.1, 1.0)


def test_first_term_is_the_cross_entropy_of_the_second_view():
    embeddings, second, _, centers = make_batch(K)
    clusters = torch.arange(K)
    images, views, centers = (functional.normalize(rows) for rows in (embeddings, second, centers))
    others = [(images @ centers.T)[i, torch.arange(K) != i] for i in range(K)]
    logits = torch.cat([(images * views).sum(1, keepdim=True), torch.stack(others)], dim=1) / 0.1
    expected = functional.cross_entropy(logits, torch.zeros(K, dtype=torch.int64))
    torch.testing.assert_close(CenterSoftmaxLoss(negative_weight=0)(embeddings, second, clusters, centers), expected)


def test_gradient_equals_finite_differences():
    embeddings, *others = make_batch()
    assert torch.autograd.gradcheck(lambda rows: CenterSoftmaxLoss()(rows, *others), (embeddings,))


def test_second_views_and_centers_receive_no_gradient():
    embeddings, second, clusters, centers = make_batch()
    CenterSoftmaxLoss()(embeddings, second.requires_grad_(), clusters, centers.requires_grad_()).backward()
    assert embeddings.grad.any()
    assert second.grad is None
    assert centers.grad is None


def test_is_invariant_to_lengths_the_order_of_images_and_the_numbers_of_clusters():
    embeddings, second, clusters, centers = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centers)
    rows, numbers = torch.randperm(len(clusters)), torch.randperm(K)
    renumbered = torch.empty_like(centers)
    renumbered[numbers] = centers
    torch.testing.assert_close(CenterSoftmaxLoss()(embeddings[rows], second[rows], clusters[rows], centers), loss)
    torch.testing.assert_close(CenterSoftmaxLoss()(embeddings, second, numbers[clusters].int(), renumbered), loss)
    torch.testing.assert_close(CenterSoftmaxLoss()(1e4 * embeddings, 1e-4 * second, clusters, 3 * centers), loss)


@pytest.mark.parametrize("value", [torch.nan, 1e30, 0.0])
def test_ignores_centers_of_clusters_without_images(value):
    embeddings, second, clusters, centers = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, clusters, centers)
    expected = torch.autograd.grad(loss, embeddings)
    more_centers = torch.cat([centers, torch.full((2, D), value, dtype=torch.float64)])
    extended = CenterSoftmaxLoss()(embeddings, second, clusters, more_centers)
    torch.testing.assert_close(extended, loss)
    torch.testing.assert_close(torch.autograd.grad(extended, embeddings), expected)


def test_loss_and_gradient_are_zero_if_all_images_are_in_one_cluster():
    embeddings, second, _, centers = make_batch()
    loss = CenterSoftmaxLoss()(embeddings, second, torch.full((12,), 2), centers)
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("rows", ["zeros", "equal", "equal centers"])
def test_loss_and_gradient_of_degenerate_batches_are_finite(rows):
    embeddings, second, clusters, centers = make_batch(dtype=torch.float32)
    if rows == "zeros":
        embeddings, second, centers = (torch.zeros_like(part) for part in (embeddings, second, centers))
    if rows == "equal":
        embeddings = second = torch.ones_like(second)
    if rows == "equal centers":
        centers = torch.ones_like(centers)
    embeddings = embeddings.detach().requires_grad_()
    assert_finite(CenterSoftmaxLoss()(embeddings, second, clusters, centers), embeddings)


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.001])
def test_is_accurate_if_the_probability_of_a_negative_rounds_to_one(temperature):
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    second, centers = -embeddings.detach(), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    loss = CenterSoftmaxLoss(temperature)(embeddings, second, torch.tensor([0, 1]), centers)
    loss.backward()
    expected = 2 / temperature + math.log1p(math.exp(-2 / temperature))  # the logits differ by 2 / t
    assert loss.item() == pytest.approx(2 * expected, rel=1e-6)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_runs_in_float32_under_autocast(dtype):
    embeddings, second, clusters, centers = make_batch(dtype=dtype)
    expected = naive_loss(*(rows.double() for rows in (embeddings.detach(), second)), clusters, centers.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CenterSoftmaxLoss()(embeddings, second, clusters, centers)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_training_makes_the_second_view_the_most_similar():
    embeddings, second, clusters, centers = make_batch(16, k=8, d=16, dtype=torch.float32)
    train(lambda: CenterSoftmaxLoss()(embeddings, second, clusters, centers), [embeddings], lr=0.05, steps=50)
    positive = functional.cosine_similarity(embeddings, second)
    others = functional.cosine_similarity(embeddings.unsqueeze(1), centers, dim=2)
    others[torch.arange(16), clusters] = -1
    assert (positive > others.max(dim=1).values).all()


# Errors


@pytest.mark.parametrize("shape", ["second", "one second", "centers"])
def test_rejects_shapes_that_do_not_match(shape, unchecked_types):
    embeddings, second, clusters, centers = make_batch()
    second = {"second": second[:-1], "one second": second[:1]}.get(shape, second)
    centers = centers[:, :-1] if shape == "centers" else centers
    message = r"must have the same shape \(b, d\), and `centers` the shape \(k, d\), got \(12, 6\), .*\. Embed all"
    with pytest.raises(ValueError, match=message):
        CenterSoftmaxLoss()(embeddings, second, clusters, centers)


@pytest.mark.parametrize(("row", "found"), [(K, "0 to 4"), (-1, "-1 to 3")])
def test_rejects_clusters_without_a_center(row, found):
    embeddings, second, _, centers = make_batch(K + 1)
    clusters = torch.tensor([0, 1, 2, 3, row])
    with pytest.raises(ValueError, match=rf"`clusters` must lie in 0\.\.3, got {found}\. Pass one center for"):
        CenterSoftmaxLoss()(embeddings, second, clusters, centers)


def test_rejects_infinite_embeddings_and_clusters_that_are_not_one_integer_per_image(unchecked_types):
    embeddings, second, clusters, centers = make_batch()
    with pytest.raises(TypeError, match="`clusters` must be integers"):
        CenterSoftmaxLoss()(embeddings, second, clusters.float(), centers)
    with pytest.raises(ValueError, match=r"`clusters` must have shape \(12,\)"):
        CenterSoftmaxLoss()(embeddings, second, clusters[:-1], centers)
    with pytest.raises(ValueError, match="`embeddings` must be finite, got 12 of 12 rows"):
        CenterSoftmaxLoss()(embeddings / 0, second, clusters, centers)


def test_is_ten_times_as_fast_as_a_loop():
    batch = make_batch(128, 32, 512, dtype=torch.float32)
    assert_ten_times_as_fast(lambda: CenterSoftmaxLoss()(*batch), lambda: naive_loss(*batch))
