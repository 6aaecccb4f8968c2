"""STML against loops over rows and pairs."""

import math
import time

import jaxtyping
import pytest
import torch

from udmlss.losses import STMLLoss
from udmlss.losses.stml import relative_distances, relaxed_contrastive_loss, teacher_similarity


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some values before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make_batch(n_images=6, views=2, d=4, w=7):
    """Return embeddings, wide embeddings, the teacher's, and the image of each row."""
    images = torch.randperm(100)[:n_images].repeat(views)
    embeddings, wide, taught = (torch.randn(len(images), size, dtype=torch.float64) for size in (d, w, w))
    return embeddings.requires_grad_(), wide.requires_grad_(), taught, images


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def relative(rows):
    """Return all distances as multiples of each row's mean."""
    found = [[distance(a, b) for b in rows] for a in rows]
    return [[value / (sum(row) / len(row)) for value in row] for row in found]


def similarity_by_hand(taught, images, sigma, neighbors):
    n = len(taught)
    units = [row / row.norm() for row in taught]
    pairwise = [[math.exp(-(distance(a, b) ** 2) / sigma) for b in units] for a in units]
    rank = [[pairwise[i][j] + (images[i] == images[j]) for j in range(n)] for i in range(n)]
    nearest = [sorted(range(n), key=lambda j, i=i: -rank[i][j])[:neighbors] for i in range(n)]
    mutual = [{j for j in nearest[i] if i in nearest[j]} for i in range(n)]
    shared = [[(j in mutual[i]) * len(mutual[i] & mutual[j]) / len(mutual[i]) for j in range(n)] for i in range(n)]
    half = [near[: max(1, neighbors // 2)] for near in nearest]
    expanded = [[sum(shared[h][j] for h in half[i]) / len(half[i]) for j in range(n)] for i in range(n)]
    return [[pairwise[i][j] / 2 + (expanded[i][j] + expanded[j][i]) / 4 for j in range(n)] for i in range(n)]


def contrast_by_hand(rows, similarity, delta):
    n, distances, total = len(rows), relative(rows), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += similarity[i][j] * distances[i][j] ** 2
                total += (1 - similarity[i][j]) * max(0, delta - distances[i][j]) ** 2
    return total / (n * (n - 1))


def divergence_by_hand(narrow, wide):
    total = 0.0
    for own, target in zip(relative(narrow), relative(wide), strict=True):
        q, p = ([math.exp(-value) for value in row] for row in (own, target))
        total += sum(b / sum(p) * math.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p, strict=True))
    return total / len(narrow)


def by_hand(embeddings, wide, taught, images, *, sigma=3.0, delta=1.0, neighbors=10):
    similarity = similarity_by_hand(taught, images.tolist(), sigma, neighbors)
    contrast = (contrast_by_hand(rows, similarity, delta) for rows in (embeddings, wide))
    return sum(contrast) / 2 + divergence_by_hand(embeddings, wide)


@pytest.mark.parametrize(("n_images", "views"), [(2, 1), (2, 2), (6, 2), (5, 3), (20, 1)])
@pytest.mark.parametrize("chosen", [{}, {"sigma": 0.5, "delta": 0.9, "neighbors": 4}, {"neighbors": 3}])
def test_the_loss_is_what_loops_make_of_the_equations(n_images, views, chosen):
    batch = make_batch(n_images, views)
    loss = STMLLoss(**chosen)(*batch)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(by_hand(*batch, **chosen), abs=1e-6)


def test_the_published_settings_are_the_default():
    loss = STMLLoss()
    assert (loss.sigma, loss.delta, loss.neighbors) == (3, 1, 10)


def test_the_gradient_is_that_of_the_loss():
    embeddings, wide, taught, images = make_batch(4, 2)
    distances = relative_distances(wide).detach()

    def both(narrow, broad):  # with the target held, as the second term holds it
        similarity = teacher_similarity(taught, images, sigma=3, neighbors=10)
        contrast = (relaxed_contrastive_loss(rows, similarity) for rows in (narrow, broad))
        own = torch.log_softmax(-relative_distances(narrow), dim=1)
        target = torch.log_softmax(-distances, dim=1)
        return sum(contrast) / 2 + (target.exp() * (target - own)).sum() / len(own)

    assert torch.autograd.gradcheck(both, (embeddings, wide))
    found = torch.autograd.grad(STMLLoss()(embeddings, wide, taught, images), (embeddings, wide))
    expected = torch.autograd.grad(both(embeddings, wide), (embeddings, wide))
    torch.testing.assert_close(found, expected)


def test_no_gradient_goes_to_the_teacher():
    embeddings, wide, taught, images = make_batch()
    taught.requires_grad_()
    STMLLoss()(embeddings, wide, taught, images).backward()
    assert taught.grad is None


def test_the_order_of_the_batch_and_the_numbers_of_the_images_make_no_difference():
    batch = make_batch(10)
    order = torch.randperm(20)
    again = STMLLoss()(*(rows[order] for rows in batch))
    renamed = STMLLoss()(*batch[:3], 1000 - batch[3])
    expected = STMLLoss()(*batch)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(renamed, expected)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_lengths_make_no_difference(scale):
    embeddings, wide, taught, images = make_batch()
    again = STMLLoss()(scale * embeddings, wide, taught * scale, images)
    torch.testing.assert_close(again, STMLLoss()(embeddings, wide, taught, images))


def test_similarity_lies_in_0_to_1_is_symmetric_and_knows_views_of_one_image():
    taught, images = torch.randn(30, 8), torch.arange(15).repeat(2)
    similarity = teacher_similarity(taught, images, sigma=3, neighbors=10)
    torch.testing.assert_close(similarity, similarity.T)
    assert 0 <= similarity.min() <= similarity.max() <= 1 + 1e-6
    strangers = teacher_similarity(taught, torch.arange(30), sigma=3, neighbors=10)
    same = images[:, None] == images
    assert similarity[same].mean() > strangers[same].mean()


@pytest.mark.parametrize(
    "rows",
    [torch.ones(6, 4), torch.zeros(6, 4), torch.eye(6)[:, :4], torch.randn(1, 4)],
    ids=["equal", "zero", "square", "alone"],
)
@pytest.mark.parametrize("neighbors", [1, 10])
def test_a_degenerate_batch_has_a_finite_loss_and_gradient(rows, neighbors):
    rows = rows.clone().requires_grad_()
    loss = STMLLoss(neighbors=neighbors)(rows, rows * 2, rows.detach(), torch.zeros(len(rows), dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert rows.grad.isfinite().all()


def test_under_autocast_the_loss_is_the_same():
    batch = [rows.float() if rows.is_floating_point() else rows for rows in make_batch()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = STMLLoss()(*batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, STMLLoss()(*batch))


def test_students_come_to_see_what_the_teacher_sees():
    taught = torch.randn(5, 8).repeat_interleave(4, dim=0) + 0.1 * torch.randn(20, 8)
    embeddings, wide = (torch.randn(20, size, requires_grad=True) for size in (3, 8))
    optimizer = torch.optim.Adam([embeddings, wide], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        STMLLoss(neighbors=4)(embeddings, wide, taught, torch.arange(20)).backward()
        optimizer.step()
    own = torch.arange(20) // 4
    for rows in (embeddings, wide):
        nearest = (torch.cdist(rows, rows) + 1e9 * torch.eye(20)).argmin(dim=1)
        assert (own[nearest] == own).float().mean() > 0.9


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"sigma": 0}, "`sigma` must be above 0, got 0"),
        ({"delta": 0}, "`delta` must be above 0, got 0"),
        ({"neighbors": 0}, "`neighbors` must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chosen, sentence):
    with pytest.raises(ValueError, match=sentence):
        STMLLoss(**chosen)


def test_rows_that_are_no_batch_are_refused(untyped):
    rows, images = torch.randn(6, 4), torch.arange(6)
    with pytest.raises(ValueError, match="must have a row for each image of the batch, got 6, 6 and 5"):
        STMLLoss()(rows, rows, torch.randn(5, 4), images)
    with pytest.raises(ValueError, match=r"`images` must have shape \(6,\)"):
        STMLLoss()(rows, rows, rows, images[:5])
    with pytest.raises(ValueError, match="`embeddings` must be finite"):
        STMLLoss()(rows / 0, rows, rows, images)
    with pytest.raises(ValueError, match="`taught` must be finite"):
        STMLLoss()(rows, rows, rows / 0, images)


def test_it_is_ten_times_as_fast_as_loops():
    rows, images = torch.randn(512, 512), torch.arange(256).repeat(2)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        STMLLoss()(rows, rows, rows, images)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    for row in rows[:128]:  # of one of three matrices of distances a quarter
        for other in rows:
            torch.dist(row, other)
    assert 10 * min(seconds) < 12 * (time.perf_counter() - started)
