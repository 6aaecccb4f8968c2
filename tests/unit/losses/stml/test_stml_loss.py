"""STML and its relaxed contrastive loss, compared with loops over rows and pairs."""

import math

import pytest
import torch
from loss_checks import assert_finite, seconds, train

from udmlss.losses import STMLLoss
from udmlss.losses.stml.relaxed_contrastive import relative_distances, relaxed_contrastive_loss, teacher_similarity


def make_batch(n_images=6, views=2, d=4, w=7):
    """Return embeddings, wide embeddings, the teacher's embeddings, and the image index of each row."""
    indices = torch.randperm(100)[:n_images].repeat(views)
    embeddings, wide, teacher = (torch.randn(len(indices), size, dtype=torch.float64) for size in (d, w, w))
    return embeddings.requires_grad_(), wide.requires_grad_(), teacher, indices


def distance(a, b):
    return float((a - b).detach().norm())


def relative(rows):
    """Return all distances, divided by the mean of their row."""
    distances = [[distance(a, b) for b in rows] for a in rows]
    return [[value / (sum(row) / len(row)) for value in row] for row in distances]


def naive_similarity(teacher, indices, sigma, neighbors):
    n = len(teacher)
    units = [row / row.norm() for row in teacher]
    pairwise = [[math.exp(-(distance(a, b) ** 2) / sigma) for b in units] for a in units]
    rank = [[pairwise[i][j] + (indices[i] == indices[j]) for j in range(n)] for i in range(n)]
    nearest = [sorted(range(n), key=lambda j, i=i: -rank[i][j])[:neighbors] for i in range(n)]
    mutual = [{j for j in nearest[i] if i in nearest[j]} for i in range(n)]
    shared = [[(j in mutual[i]) * len(mutual[i] & mutual[j]) / len(mutual[i]) for j in range(n)] for i in range(n)]
    half = [near[: max(1, neighbors // 2)] for near in nearest]
    expanded = [[sum(shared[h][j] for h in half[i]) / len(half[i]) for j in range(n)] for i in range(n)]
    return [[pairwise[i][j] / 2 + (expanded[i][j] + expanded[j][i]) / 4 for j in range(n)] for i in range(n)]


def naive_contrastive(rows, similarity, delta):
    n, distances, total = len(rows), relative(rows), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += similarity[i][j] * distances[i][j] ** 2
                total += (1 - similarity[i][j]) * max(0, delta - distances[i][j]) ** 2
    return total / (n * (n - 1))


def naive_divergence(narrow, wide):
    total = 0.0
    for own, target in zip(relative(narrow), relative(wide), strict=True):
        q, p = ([math.exp(-value) for value in row] for row in (own, target))
        total += sum(b / sum(p) * math.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p, strict=True))
    return total / len(narrow)


def naive_loss(embeddings, wide, teacher, indices, *, sigma=3.0, delta=1.0, neighbors=10):
    similarity = naive_similarity(teacher, indices.tolist(), sigma, neighbors)
    contrastive = (naive_contrastive(rows, similarity, delta) for rows in (embeddings, wide))
    return sum(contrastive) / 2 + naive_divergence(embeddings, wide)


@pytest.mark.parametrize(("n_images", "views"), [(2, 1), (2, 2), (5, 3), (12, 1)])
@pytest.mark.parametrize("settings", [{}, {"sigma": 0.5, "delta": 0.9, "neighbors": 4}, {"neighbors": 3}])
def test_equals_the_definition(n_images, views, settings):
    batch = make_batch(n_images, views)
    loss = STMLLoss(**settings)(*batch)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(naive_loss(*batch, **settings), abs=1e-6)


def test_defaults_are_the_published_settings():
    loss = STMLLoss()
    assert (loss.sigma, loss.delta, loss.neighbors) == (3, 1, 10)


def test_gradient_equals_finite_differences():
    embeddings, wide, teacher, indices = make_batch(4, 2)
    distances = relative_distances(wide).detach()

    def with_constant_target(narrow, broad):
        similarity = teacher_similarity(teacher, indices, sigma=3, neighbors=10)
        contrastive = (relaxed_contrastive_loss(rows, similarity) for rows in (narrow, broad))
        log_p = torch.log_softmax(-relative_distances(narrow), dim=1)
        target = torch.log_softmax(-distances, dim=1)
        return sum(contrastive) / 2 + (target.exp() * (target - log_p)).sum() / len(log_p)

    assert torch.autograd.gradcheck(with_constant_target, (embeddings, wide), fast_mode=True)
    gradients = torch.autograd.grad(STMLLoss()(embeddings, wide, teacher, indices), (embeddings, wide))
    expected = torch.autograd.grad(with_constant_target(embeddings, wide), (embeddings, wide))
    torch.testing.assert_close(gradients, expected)


def test_teacher_receives_no_gradient():
    embeddings, wide, teacher, indices = make_batch()
    teacher.requires_grad_()
    STMLLoss()(embeddings, wide, teacher, indices).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_is_invariant_to_the_scale_of_embeddings(scale):
    embeddings, wide, teacher, indices = make_batch()
    scaled = STMLLoss()(scale * embeddings, wide, teacher * scale, indices)
    torch.testing.assert_close(scaled, STMLLoss()(embeddings, wide, teacher, indices))


def test_similarity_is_symmetric_in_0_to_1_and_higher_for_views_of_one_image():
    teacher, indices = torch.randn(30, 8), torch.arange(15).repeat(2)
    similarity = teacher_similarity(teacher, indices, sigma=3, neighbors=10)
    torch.testing.assert_close(similarity, similarity.T)
    assert 0 <= similarity.min() <= similarity.max() <= 1 + 1e-6
    of_different_images = teacher_similarity(teacher, torch.arange(30), sigma=3, neighbors=10)
    same = indices[:, None] == indices
    assert similarity[same].mean() > of_different_images[same].mean()


@pytest.mark.parametrize(
    "rows",
    [torch.ones(6, 4), torch.zeros(6, 4), torch.eye(6)[:, :4], torch.randn(1, 4)],
    ids=["equal", "zero", "orthogonal", "single"],
)
@pytest.mark.parametrize("neighbors", [1, 10])
def test_loss_and_gradient_of_degenerate_batches_are_finite(rows, neighbors):
    rows = rows.clone().requires_grad_()
    assert_finite(STMLLoss(neighbors=neighbors)(rows, rows * 2, rows.detach(), [0] * len(rows)), rows)


def test_autocast_does_not_change_the_loss():
    batch = [rows.float() if rows.is_floating_point() else rows for rows in make_batch()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = STMLLoss()(*batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, STMLLoss()(*batch))


def test_training_gives_the_student_the_nearest_neighbors_of_the_teacher():
    teacher = torch.randn(5, 8).repeat_interleave(4, dim=0) + 0.1 * torch.randn(20, 8)
    embeddings, wide = (torch.randn(20, size, requires_grad=True) for size in (3, 8))
    criterion, indices = STMLLoss(neighbors=4), torch.arange(20)
    train(lambda: criterion(embeddings, wide, teacher, indices), [embeddings, wide], lr=0.05, steps=60)
    groups = torch.arange(20) // 4
    for rows in (embeddings, wide):
        nearest = (torch.cdist(rows, rows) + 1e9 * torch.eye(20)).argmin(dim=1)
        assert (groups[nearest] == groups).float().mean() > 0.9


def test_rejects_batches_that_do_not_match(unchecked_types):
    rows, indices = torch.randn(6, 4), torch.arange(6)
    with pytest.raises(ValueError, match="must have the same number of rows, got 6, 6 and 5"):
        STMLLoss()(rows, rows, torch.randn(5, 4), indices)
    with pytest.raises(ValueError, match=r"`image_indices` must have shape \(6,\)"):
        STMLLoss()(rows, rows, rows, indices[:5])
    with pytest.raises(ValueError, match="`embeddings` must be finite"):
        STMLLoss()(rows / 0, rows, rows, indices)
    with pytest.raises(ValueError, match="`wide_embeddings` must be finite"):
        STMLLoss()(rows, rows / 0, rows, indices)
    with pytest.raises(
        ValueError, match=r"`similarity` must be of shape \(b, b\), got shape \(6, 1\) for 6 embeddings"
    ):
        relaxed_contrastive_loss(rows, torch.ones(6, 1))
    with pytest.raises(ValueError, match="`teacher_embeddings` must be finite"):
        STMLLoss()(rows, rows, rows / 0, indices)


def test_is_ten_times_as_fast_as_loops():
    rows, indices = torch.randn(256, 512), torch.arange(128).repeat(2)
    fastest = seconds(lambda: STMLLoss()(rows, rows, rows, indices))
    part = seconds(lambda: [torch.dist(row, other) for row in rows[:64] for other in rows], repeat=1)
    assert 10 * fastest < 12 * part  # which is a quarter of one of three matrices of distances
