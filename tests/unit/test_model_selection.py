import jaxtyping
import pytest
import torch
from torch.nn import functional

from udmlss import LabelFreeScores, label_free_scores, model_selection
from udmlss.model_selection import effective_rank


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ranked(query, embeddings):
    """Return the indices of all embeddings by descending similarity."""
    similarities = [float(query.double() @ embedding.double()) for embedding in embeddings]
    return sorted(range(len(similarities)), key=lambda index: -similarities[index])


def with_views(n, indices, strength, *, d=5):
    """Return embeddings, and views of some of them."""
    embeddings = functional.normalize(noise(n, d))
    return embeddings, functional.normalize(embeddings[indices] + strength * noise(len(indices), d, seed=1))


def test_self_retrieval_is_the_fraction_of_views_whose_most_similar_image_is_their_own():
    indices = torch.arange(0, 60, 2)
    embeddings, views = with_views(60, indices, 0.5)
    count = sum(ranked(view, embeddings)[0] == own for view, own in zip(views, indices.tolist(), strict=True))
    assert 0 < count < 30
    for labels in (indices, indices.tolist(), indices.numpy()):
        assert label_free_scores(embeddings, views, labels).self_retrieval == pytest.approx(count / 30)


@pytest.mark.parametrize(("n", "n_neighbors"), [(100, 20), (41, 20), (40, 19), (9, 4), (3, 1)])
def test_shared_neighbors_is_the_fraction_of_neighbors_that_an_image_and_its_view_have_in_common(n, n_neighbors):
    indices = torch.arange(n).flip(0)[: max(2, n // 2)].repeat(2)  # in descending order, and each twice
    embeddings, views = with_views(n, indices, 0.5)
    shared = 0
    for view, own in zip(views, indices.tolist(), strict=True):
        of_image, of_view = (
            [index for index in ranked(query, embeddings) if index != own][:n_neighbors]
            for query in (embeddings[own], view)
        )
        shared += len(set(of_image) & set(of_view))
    assert 0 < shared < n_neighbors * len(indices)
    found = label_free_scores(embeddings, views, indices).shared_neighbors
    assert found == pytest.approx(shared / (n_neighbors * len(indices)))


def test_the_score_is_the_mean_of_shared_neighbors_and_spread():
    assert LabelFreeScores(0.1, 0.3, 5.0, 0.9).score == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("n", "d", "n_directions", "spread"), [(40, 8, 8, 1), (40, 8, 4, 2 / 3), (40, 8, 1, 0), (40, 1, 1, 0), (2, 8, 1, 0)]
)
def test_the_spread_is_the_entropy_as_a_fraction_of_the_highest(n, d, n_directions, spread):
    directions = torch.eye(d)[:n_directions]
    points = torch.cat([directions, -directions]).repeat(n // (2 * n_directions), 1)
    scores = label_free_scores(points, points[:2], torch.arange(2))
    assert scores.spread == pytest.approx(spread, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(5, 300), (300, 5)])
def test_the_spread_is_at_most_one(n, d):
    points = torch.linalg.qr(noise(max(n, d), min(n, d)))[0]
    points = points.T if d > n else points
    assert 0.99 < label_free_scores(points, points[:2], torch.arange(2)).spread <= 1


@pytest.mark.parametrize("n_directions", [1, 3, 8])
def test_effective_rank_is_the_number_of_directions_of_equal_variance(n_directions):
    directions = torch.eye(8)[:n_directions]
    points = torch.cat([directions, -directions]) + 5  # the mean is not zero
    assert effective_rank(points) == pytest.approx(n_directions)


def effective_rank_by_hand(values):
    fractions = values / values.sum()
    return float(torch.special.entr(fractions).sum().exp())


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    points = noise(40, 6) * torch.tensor([5, 4, 3, 2, 1, 0.1])
    values = torch.linalg.svdvals((points - points.mean(dim=0)).double())
    assert effective_rank(points) == pytest.approx(effective_rank_by_hand(values), rel=1e-6)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_effective_rank_ignores_rounding_if_there_are_more_dimensions_than_embeddings(n):
    points = noise(n, 3, seed=1).double() @ noise(3, 500).double()  # at most three directions
    values = torch.linalg.svdvals(points - points.mean(dim=0))[: min(3, n - 1)]
    assert effective_rank(points) == pytest.approx(effective_rank_by_hand(values), rel=1e-9)


def test_the_effective_rank_of_many_images_is_that_of_a_sample(monkeypatch):
    indices = torch.arange(0, 3000, 30)
    embeddings, views = with_views(3000, indices, 0.1, d=16)
    of_all = label_free_scores(embeddings, views, indices)
    monkeypatch.setattr(model_selection, "_RANK_SAMPLE", 500)
    of_sample = label_free_scores(embeddings, views, indices)
    assert of_sample == label_free_scores(embeddings, views, indices)
    assert (of_sample.self_retrieval, of_sample.shared_neighbors) == (of_all.self_retrieval, of_all.shared_neighbors)
    assert of_sample.effective_rank != of_all.effective_rank
    assert of_sample.effective_rank == pytest.approx(of_all.effective_rank, rel=0.02)


def test_views_equal_to_their_images_have_the_highest_scores():
    embeddings = functional.normalize(noise(50, 8))
    scores = label_free_scores(embeddings, embeddings[:20], torch.arange(20))
    assert (scores.self_retrieval, scores.shared_neighbors) == (1, 1)


def test_random_views_have_the_scores_of_chance():
    embeddings, views = functional.normalize(noise(2500, 8)), functional.normalize(noise(1000, 8, seed=1))
    scores = label_free_scores(embeddings, views, torch.arange(1000))
    assert scores.self_retrieval < 0.01
    assert scores.shared_neighbors == pytest.approx(20 / 2500, abs=0.005)


def test_an_orthogonal_transformation_changes_no_score():
    embeddings = functional.normalize(noise(64, 8))
    views = functional.normalize(embeddings + 0.2 * noise(64, 8, seed=1))
    orthogonal = torch.linalg.qr(noise(8, 8, seed=2))[0]
    found, transformed = (
        label_free_scores(rows, seen, torch.arange(64))
        for rows, seen in [(embeddings, views), (embeddings @ orthogonal, views @ orthogonal)]
    )
    assert found.self_retrieval == transformed.self_retrieval
    assert found.effective_rank == pytest.approx(transformed.effective_rank, rel=1e-4)


@pytest.mark.parametrize(
    ("views", "indices", "kind", "sentence"),
    [
        (torch.ones(3, 4), range(3), ValueError, r"`views` and `embeddings` must have the same dimension, got 4 and 5"),
        (torch.ones(3, 5), range(2), ValueError, r"`indices` must have shape \(3,\), .*, got shape \(2,\)"),
        (torch.ones(3, 5), torch.ones(3), TypeError, r"`indices` must be integers, got torch\.float32"),
        (torch.ones(3, 5), [0, 4, 9], ValueError, r"`indices` must lie in 0\.\.8, got 0 to 9\."),
        (torch.ones(3, 5), [0, -1, 8], ValueError, r"`indices` must lie in 0\.\.8, got -1 to 8\."),
        (torch.full((3, 5), torch.nan), range(3), ValueError, r"`views` must be finite, got 3 of 3"),
    ],
)
def test_rejects_views_that_do_not_match(views, indices, kind, sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types of the signature reject some before
    with pytest.raises(kind, match=sentence):
        label_free_scores(noise(9, 5), views, indices)


def test_a_view_without_its_image_among_its_neighbors_has_as_many_neighbors():
    first, second = torch.tensor([1.0, 0.1]).repeat(30, 1), torch.tensor([0.1, 1.0]).repeat(30, 1)
    embeddings = torch.cat([first, second])  # more exact duplicates than neighbors
    scores = label_free_scores(embeddings, embeddings[[40, 3]], torch.tensor([2, 3]))
    assert scores.shared_neighbors == 0.5  # the first view shares none, the second view all


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_embeddings_of_any_floating_type_are_scored(dtype):
    indices = torch.arange(20)
    embeddings, views = with_views(200, indices, 0.3)
    expected = label_free_scores(embeddings.half(), views, indices)
    found = label_free_scores(embeddings.half().to(dtype), views, indices)
    assert (found.self_retrieval, found.shared_neighbors) == (expected.self_retrieval, expected.shared_neighbors)


def test_rejects_collapsed_embeddings():
    with pytest.raises(ValueError, match="Embeddings must differ, got 9 equal rows"):
        label_free_scores(torch.ones(9, 5), torch.ones(3, 5), torch.arange(3))
