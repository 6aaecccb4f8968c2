import jaxtyping
import pytest
import torch
from torch.nn import functional

from udmlss import LabelFreeScores, label_free_scores
from udmlss.model_selection import effective_rank


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ranked(query, embeddings):
    """Return the indices of all embeddings, most similar first, by a loop."""
    similar = [float(query.double() @ embedding.double()) for embedding in embeddings]
    return sorted(range(len(similar)), key=lambda index: -similar[index])


def seen_twice(n, of, strength, *, d=5):
    """Return embeddings and views of some of them."""
    embeddings = functional.normalize(noise(n, d))
    return embeddings, functional.normalize(embeddings[of] + strength * noise(len(of), d, seed=1))


def test_self_retrieval_counts_the_views_whose_most_similar_image_is_their_own():
    of = torch.arange(0, 60, 2)
    embeddings, views = seen_twice(60, of, 0.5)
    found = sum(ranked(view, embeddings)[0] == own for view, own in zip(views, of.tolist(), strict=True))
    assert 0 < found < 30
    assert label_free_scores(embeddings, views, of).self_retrieval == pytest.approx(found / 30)


@pytest.mark.parametrize(("n", "neighbors"), [(100, 20), (41, 20), (40, 19), (9, 4), (3, 1)])
def test_shared_neighbors_counts_the_images_similar_to_an_image_and_to_its_view_as_well(n, neighbors):
    of = torch.arange(n).flip(0)[: max(2, n // 2)].repeat(2)  # in no order, and each twice
    embeddings, views = seen_twice(n, of, 0.5)
    shared = 0
    for view, own in zip(views, of.tolist(), strict=True):
        by_image, by_view = (
            [index for index in ranked(query, embeddings) if index != own][:neighbors]
            for query in (embeddings[own], view)
        )
        shared += len(set(by_image) & set(by_view))
    assert 0 < shared < neighbors * len(of)
    found = label_free_scores(embeddings, views, of).shared_neighbors
    assert found == pytest.approx(shared / (neighbors * len(of)))


def test_the_score_is_the_mean_of_shared_neighbors_and_spread():
    assert LabelFreeScores(0.1, 0.3, 5.0, 0.9).score == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("n", "d", "directions", "spread"), [(40, 8, 8, 1), (40, 8, 4, 2 / 3), (40, 8, 1, 0), (40, 1, 1, 0), (2, 8, 1, 0)]
)
def test_the_spread_is_the_share_of_the_highest_entropy(n, d, directions, spread):
    corners = torch.eye(d)[:directions]
    points = torch.cat([corners, -corners]).repeat(n // (2 * directions), 1)
    scores = label_free_scores(points, points[:2], torch.arange(2))
    assert scores.spread == pytest.approx(spread, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(5, 300), (300, 5)])
def test_the_spread_is_at_most_one_and_reaches_it(n, d):
    points = torch.linalg.qr(noise(max(n, d), min(n, d)))[0]
    points = points.T if d > n else points
    assert 0.99 < label_free_scores(points, points[:2], torch.arange(2)).spread <= 1


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_effective_rank_is_the_number_of_directions_filled_alike(directions):
    corners = torch.eye(8)[:directions]
    points = torch.cat([corners, -corners]) + 5  # about a mean that is not zero
    assert effective_rank(points) == pytest.approx(directions)


def test_effective_rank_is_the_exponential_entropy_of_singular_values():
    points = noise(40, 6) * torch.tensor([5, 4, 3, 2, 1, 0.1])
    values = torch.linalg.svdvals((points - points.mean(dim=0)).double())
    shares = values / values.sum()
    assert effective_rank(points) == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-6)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_effective_rank_counts_no_noise_where_there_are_more_dimensions_than_embeddings(n):
    points = noise(n, 3, seed=1).double() @ noise(3, 500).double()  # three directions at most
    values = torch.linalg.svdvals(points - points.mean(dim=0))[: min(3, n - 1)]
    shares = values / values.sum()
    assert effective_rank(points) == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-9)


def test_the_effective_rank_of_more_images_is_that_of_some(monkeypatch):
    of = torch.arange(0, 3000, 30)
    embeddings, views = seen_twice(3000, of, 0.1, d=16)
    whole = label_free_scores(embeddings, views, of)
    monkeypatch.setattr(judging, "_JUDGED", 500)
    some = label_free_scores(embeddings, views, of)
    assert some == label_free_scores(embeddings, views, of)
    assert (some.self_retrieval, some.shared_neighbors) == (whole.self_retrieval, whole.shared_neighbors)
    assert some.effective_rank != whole.effective_rank
    assert some.effective_rank == pytest.approx(whole.effective_rank, rel=0.02)


def test_views_equal_to_their_images_score_fully():
    embeddings = functional.normalize(noise(50, 8))
    scores = label_free_scores(embeddings, embeddings[:20], torch.arange(20))
    assert (scores.self_retrieval, scores.shared_neighbors) == (1, 1)


def test_views_of_anything_score_as_chance():
    embeddings, views = functional.normalize(noise(2500, 8)), functional.normalize(noise(1000, 8, seed=1))
    scores = label_free_scores(embeddings, views, torch.arange(1000))
    assert scores.self_retrieval < 0.01
    assert scores.shared_neighbors == pytest.approx(20 / 2500, abs=0.005)


def test_turning_all_embeddings_alike_changes_no_score():
    embeddings = functional.normalize(noise(64, 8))
    views = functional.normalize(embeddings + 0.2 * noise(64, 8, seed=1))
    turn = torch.linalg.qr(noise(8, 8, seed=2))[0]
    found, turned = (
        label_free_scores(e, v, torch.arange(64)) for e, v in [(embeddings, views), (embeddings @ turn, views @ turn)]
    )
    assert found.self_retrieval == turned.self_retrieval
    assert found.effective_rank == pytest.approx(turned.effective_rank, rel=1e-4)


@pytest.mark.parametrize(
    ("views", "of", "message"),
    [
        (torch.ones(3, 4), torch.arange(3), r"found shapes \(3, 4\) and \(3,\) beside \(9, 5\)"),
        (torch.ones(3, 5), torch.arange(2), r"found shapes \(3, 5\) and \(2,\) beside \(9, 5\)"),
        (torch.ones(3, 5), torch.tensor([0, 4, 9]), r"`of` must lie in 0\.\.8, got 0 to 9"),
        (torch.ones(3, 5), torch.tensor([0, -1, 8]), r"`of` must lie in 0\.\.8, got -1 to 8"),
        (torch.full((3, 5), torch.nan), torch.arange(3), r"`views` must be finite, got 3 of 3"),
    ],
)
def test_views_that_do_not_fit_are_refused(views, of, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse some, too
    with pytest.raises(ValueError, match=message):
        label_free_scores(noise(9, 5), views, of)


def test_a_view_far_from_its_image_shares_as_many_neighbors_as_it_finds():
    first, second = torch.tensor([1.0, 0.1]).repeat(30, 1), torch.tensor([0.1, 1.0]).repeat(30, 1)
    embeddings = torch.cat([first, second])  # exact duplicates, more than are looked at
    scores = label_free_scores(embeddings, embeddings[[40, 3]], torch.tensor([2, 3]))
    assert scores.shared_neighbors == 0.5  # the first view shares none, the second all


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_embeddings_of_any_floating_type_are_judged(dtype):
    of = torch.arange(20)
    embeddings, views = seen_twice(200, of, 0.3)
    expected = label_free_scores(embeddings.half(), views, of)
    found = label_free_scores(embeddings.half().to(dtype), views, of)
    assert (found.self_retrieval, found.shared_neighbors) == (expected.self_retrieval, expected.shared_neighbors)


def test_collapsed_embeddings_are_refused():
    with pytest.raises(ValueError, match="needs embeddings that differ"):
        label_free_scores(torch.ones(9, 5), torch.ones(3, 5), torch.arange(3))
