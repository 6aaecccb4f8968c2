import jaxtyping
import pytest
import torch
from torch.nn import functional

from udmlss import judge_embeddings, judging
from udmlss.clustering import k_means
from udmlss.judging import consistency, effective_rank, self_retrieval


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_self_retrieval_counts_the_views_whose_most_similar_image_is_their_own():
    embeddings = functional.normalize(noise(60, 5))
    of = torch.arange(0, 60, 2)
    views = functional.normalize(embeddings[of] + 0.5 * noise(30, 5, seed=1))
    found = 0
    for view, own in zip(views.double(), of.tolist(), strict=True):
        similar = [float(view @ embedding) for embedding in embeddings.double()]
        found += similar.index(max(similar)) == own
    assert 0 < found < 30
    assert self_retrieval(embeddings, views, of) == pytest.approx(found / 30)


def test_consistency_counts_the_views_nearest_to_the_mean_of_their_image_s_cluster():
    embeddings = functional.normalize(noise(100, 5))
    of = torch.arange(50)
    views = functional.normalize(embeddings[of] + 0.5 * noise(50, 5, seed=1))
    found = [0, 0, 0]
    for seed in range(3):
        labels = k_means(embeddings, 10, seed=seed)
        means = [embeddings[labels == cluster].mean(dim=0) for cluster in range(10)]
        for view, own in zip(views, of.tolist(), strict=True):
            distances = [float((view - mean).norm()) for mean in means]
            found[seed] += distances.index(min(distances)) == int(labels[own])
    assert 0 < min(found) < max(found) < 50
    assert consistency(embeddings, views, of) == pytest.approx(sum(found) / 150)


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


@pytest.fixture
def few(monkeypatch):
    """Consistency and effective rank look at 500 images at most."""
    monkeypatch.setattr(judging, "_JUDGED", 500)


@pytest.mark.usefixtures("few")
def test_up_to_so_many_images_all_count():
    embeddings, of = functional.normalize(noise(500, 5)), torch.arange(0, 500, 7)
    views = functional.normalize(embeddings[of] + 0.3 * noise(len(of), 5, seed=1))
    shares = []
    for seed in range(3):
        labels = k_means(embeddings, 22, seed=seed)
        means = torch.stack([embeddings[labels == cluster].mean(dim=0) for cluster in range(22)])
        shares.append(float((torch.cdist(views, means).argmin(dim=1) == labels[of]).float().mean()))
    assert consistency(embeddings, views, of) == pytest.approx(sum(shares) / 3)


def test_of_more_images_some_stand_for_all(monkeypatch):
    groups = torch.arange(3000) % 20
    embeddings = functional.normalize(noise(20, 16)[groups] + 0.1 * noise(3000, 16, seed=1))
    of = torch.arange(2999, 0, -30).repeat(2)  # in no order, and each twice
    views = functional.normalize(embeddings[of] + 0.1 * noise(len(of), 16, seed=2))
    whole = judge_embeddings(embeddings, views, of)
    monkeypatch.setattr(judging, "_JUDGED", 500)
    some = judge_embeddings(embeddings, views, of)
    assert some == judge_embeddings(embeddings, views, of)
    assert some.self_retrieval == whole.self_retrieval
    assert some.effective_rank == pytest.approx(whole.effective_rank, rel=0.02)
    assert some.consistency > 0.5
    assert judge_embeddings(embeddings, embeddings[of], of).consistency == 1
    others = embeddings[(of + 1) % 3000]  # of another group each
    assert judge_embeddings(embeddings, others, of).consistency == 0


@pytest.mark.usefixtures("few")
def test_of_more_images_those_with_a_view_are_clustered_too(monkeypatch):
    seen = []
    monkeypatch.setattr(
        judging, "k_means", lambda rows, k, seed: seen.append((len(rows), k)) or k_means(rows, k, seed=seed)
    )
    embeddings = functional.normalize(noise(2000, 8))
    consistency(embeddings, embeddings[:1000], torch.arange(1000))
    assert len(seen) == 3
    ((rows, k),) = set(seen)
    assert 1000 < rows < 1500
    assert k == int(rows**0.5)


def test_views_equal_to_their_images_score_fully():
    embeddings = functional.normalize(noise(50, 8))
    scores = judge_embeddings(embeddings, embeddings[:20], torch.arange(20))
    assert (scores.self_retrieval, scores.consistency, scores.score) == (1, 1, 1)


def test_views_of_anything_score_as_chance():
    embeddings, views = functional.normalize(noise(2500, 8)), functional.normalize(noise(1000, 8, seed=1))
    scores = judge_embeddings(embeddings, views, torch.arange(1000))
    assert scores.self_retrieval < 0.01
    assert scores.consistency == pytest.approx(1 / 50, abs=0.02)


def test_turning_all_embeddings_alike_changes_no_score():
    embeddings = functional.normalize(noise(64, 8))
    views = functional.normalize(embeddings + 0.2 * noise(64, 8, seed=1))
    turn = torch.linalg.qr(noise(8, 8, seed=2))[0]
    found, turned = (
        judge_embeddings(e, v, torch.arange(64)) for e, v in [(embeddings, views), (embeddings @ turn, views @ turn)]
    )
    assert found.self_retrieval == turned.self_retrieval
    assert found.effective_rank == pytest.approx(turned.effective_rank, rel=1e-4)


@pytest.mark.parametrize(
    ("views", "of", "message"),
    [
        (torch.ones(3, 4), torch.arange(3), r"found shapes \(3, 4\) and \(3,\) beside \(9, 5\)"),
        (torch.ones(3, 5), torch.arange(2), r"found shapes \(3, 5\) and \(2,\) beside \(9, 5\)"),
        (torch.ones(3, 5), torch.tensor([0, 4, 9]), r"`of` must lie in 0\.\.8; found 0 to 9"),
        (torch.ones(3, 5), torch.tensor([0, -1, 8]), r"`of` must lie in 0\.\.8; found -1 to 8"),
        (torch.full((3, 5), torch.nan), torch.arange(3), r"`views` must be finite; found 3 of 3"),
    ],
)
def test_views_that_do_not_fit_are_refused(views, of, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse some, too
    with pytest.raises(ValueError, match=message):
        judge_embeddings(noise(9, 5), views, of)


def test_images_that_are_equal_are_judged_without_a_warning():
    embeddings = torch.tensor([[0.0, 3.0], [3.0, 0.0], [-3.0, 0.0]]).repeat(
        20, 1
    )  # fewer differ than clusters are tried
    views = 0.4 * embeddings[:3]  # nearer to the origin than to their images, and their images are the nearest
    assert consistency(embeddings, views, torch.arange(3)) == 1


def test_collapsed_embeddings_are_refused():
    with pytest.raises(ValueError, match="needs embeddings that differ"):
        judge_embeddings(torch.ones(9, 5), torch.ones(3, 5), torch.arange(3))
