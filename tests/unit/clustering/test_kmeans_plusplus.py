from collections import Counter
from statistics import fmean

import numpy as np
import pytest
import torch
from points import blobs, noise

from udmlss.clustering import lloyd
from udmlss.clustering.kmeans import k_means
from udmlss.clustering.kmeans_plusplus import initial_centers, kmeans_plusplus
from udmlss.neighbors.backends import euclidean_search

faiss = pytest.importorskip("faiss")


@pytest.fixture(params=["faiss", "scikit-learn"])
def backend(request):
    return faiss if request.param == "faiss" else None


@pytest.mark.parametrize("seed", range(4))
def test_groups_far_apart_are_found_from_a_sample(backend, monkeypatch, seed):
    monkeypatch.setattr(starting, "IN_MEMORY", 2000)
    monkeypatch.setattr(starting, "_SAMPLED", 20)
    monkeypatch.setattr(clustering, "_import_faiss", lambda _: backend)
    points, group = blobs()
    pairs = set(zip(k_means(points, 12, seed=seed).tolist(), group.tolist(), strict=True))
    assert len(pairs) == 12


@pytest.mark.parametrize(("held", "sampled", "size"), [(2399, 3, 30), (2399, 64, 299), (2400, 3, 300), (1, 3, 10)])
def test_the_start_is_drawn_from_all_points_or_made_from_a_sample(backend, monkeypatch, held, sampled, size):
    seeded_generators, draw = [], starting.kmeans_plusplus
    monkeypatch.setattr(starting, "IN_MEMORY", held)
    monkeypatch.setattr(starting, "_SAMPLED", sampled)
    monkeypatch.setattr(starting, "kmeans_plusplus", lambda *args: seeded_generators.append(args[0]) or draw(*args))
    points = noise()
    start, known_then = initial_centers(points, 10, 5, 0, backend)
    known = {tuple(row) for row in points.tolist()}
    assert start.shape == (10, 8)
    assert len(seeded_generators[0]) == size
    assert {tuple(row) for row in seeded_generators[0].tolist()} <= known
    assert (size in {10, 300}) == ({tuple(row) for row in start.tolist()} <= known)
    assert (known_then is None) == (held < 2400)


def potential(points, drawn):
    """Return the sum of squared distances to the nearest point drawn."""
    return float(torch.cdist(points.double(), drawn.double()).square().amin(dim=1).sum())


def one_by_one(points, k, seed, n_trials):
    """Draw by squared distance, looking at all points after each draw, of some trials the one that leaves least."""
    random, squares = np.random.default_rng(seed), torch.cdist(points.double(), points.double()).square().numpy()
    drawn = [random.integers(len(points))]
    while len(drawn) < k:
        apart = squares[drawn].min(axis=0)
        trials = random.choice(len(points), n_trials, p=apart / apart.sum())
        drawn.append(min(trials, key=lambda each: np.minimum(apart, squares[each]).sum()))
    return points[drawn]


@pytest.mark.parametrize(("k", "spread"), [(8, 0.5), (60, 0.3), (100, 0.4)])
def test_the_start_is_nearly_as_good_as_that_of_a_greedy_draw_one_by_one(backend, k, spread):
    ours, theirs, plain = [], [], []
    for seed in range(6):
        points = blobs(k, 2000 // k, 16, apart=1 / spread)[0]
        ours.append(potential(points, kmeans_plusplus(points, k, seed, backend)[0]))
        theirs.append(potential(points, one_by_one(points, k, seed, 2 + int(np.log(k)))))
        plain.append(potential(points, one_by_one(points, k, seed, 1)))
    assert fmean(ours) < 0.9 * fmean(plain)
    assert fmean(ours) < 1.05 * fmean(theirs)


@pytest.mark.parametrize("k", [8, 60, 300])
def test_the_start_of_many_clusters_is_as_good_as_that_of_a_draw_one_by_one(backend, monkeypatch, k):
    monkeypatch.setattr(starting, "_GREEDY", 1)
    points = blobs(k, 2000 // k, 16, apart=2)[0]
    ours = [potential(points, kmeans_plusplus(points, k, seed, backend)[0]) for seed in range(12)]
    theirs = [potential(points, one_by_one(points, k, seed, 1)) for seed in range(12)]
    assert fmean(ours) == pytest.approx(fmean(theirs), rel=0.05)


def test_what_candidates_keep_of_their_chance_does_not_depend_on_where_the_origin_is():
    points, candidates, chances = noise(200, 32), torch.arange(200), torch.full((200,), 64.0)
    near, far = (starting._kept(points + offset, candidates, chances, 1e-6) for offset in (0, 3000))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-3)
    expected = torch.cdist(points.double(), points.double()).square() / 64
    torch.testing.assert_close(near, expected.clamp(max=1).float())


@pytest.mark.parametrize("seed", range(3))
def test_the_points_drawn_are_in_nearly_all_groups(backend, seed):
    points, group = blobs(k=200, each=5, apart=200)
    of = dict(zip(map(tuple, points.tolist()), group.tolist(), strict=True))
    drawn, _ = kmeans_plusplus(points, 200, seed, backend)
    assert len({of[tuple(row)] for row in drawn.tolist()}) >= 199


@pytest.mark.parametrize("k", [2, 17, 40, 300])
def test_no_point_is_drawn_twice_and_as_many_as_are_asked_for(backend, k):
    drawn, _ = kmeans_plusplus(noise(), k, 0, backend)
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn) == k


@pytest.mark.parametrize("k", [40, 60])
def test_of_few_points_that_differ_all_are_drawn_and_equal_ones_fill_up(backend, k):
    points = noise(20).repeat(3, 1)
    drawn, _ = kmeans_plusplus(points, k, 0, backend)
    times = Counter(map(tuple, drawn.tolist()))
    assert len(drawn) == k
    assert times.keys() == set(map(tuple, points.tolist()))
    assert max(times.values()) <= 3


@pytest.mark.parametrize("k", [2, 7, 100])
def test_what_is_known_then_is_which_of_the_points_drawn_is_nearest(backend, k):
    points = noise()
    drawn, known = kmeans_plusplus(points, k, 0, backend)
    nearest, labels = torch.cdist(points, drawn).square().min(dim=1)
    assert torch.equal(known.labels, labels)
    torch.testing.assert_close(known.nearest, nearest, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(known.others, known.nearest)


@pytest.mark.parametrize("k", [2, 3, 4, 20, 100])
@pytest.mark.parametrize("max_iter", [0, 1, 20])
def test_k_means_gives_the_same_clusters_whether_or_not_it_is_told(backend, k, max_iter):
    points = noise()
    drawn, known = kmeans_plusplus(points, k, 0, backend)
    told, centroids = lloyd.lloyd(points, drawn, max_iter, backend, known)
    found, means = lloyd.lloyd(points, drawn, max_iter, backend)
    assert torch.equal(told, found)
    torch.testing.assert_close(centroids, means)


class Looks:
    """Notes how many points are compared with how many by each search."""

    def __init__(self, monkeypatch, backend, *modules):
        self.sizes = []
        device, closest = euclidean_search(backend, torch.device("cpu"))
        looking = lambda rows, drawn, k: self.sizes.append((len(rows), len(drawn))) or closest(rows, drawn, k)  # noqa: E731
        for module in modules:
            monkeypatch.setattr(module, "euclidean_search", lambda *_: (device, looking))


@pytest.mark.parametrize("d", [8, 64])
@pytest.mark.parametrize("differing", [5000, 100, 10])
def test_few_looks_at_all_points_draw_many(backend, monkeypatch, differing, d):
    looks = Looks(monkeypatch, backend, starting)
    kmeans_plusplus(noise(differing, d).repeat(5000 // differing, 1), 2000, 0, backend)
    assert sum(drawn for _, drawn in looks.sizes) == 2000
    assert len(looks.sizes) < 30


@pytest.mark.parametrize("held", [2**28, 2400])
def test_k_means_begins_with_what_is_known(backend, monkeypatch, held):
    monkeypatch.setattr(clustering, "_import_faiss", lambda _: backend)
    monkeypatch.setattr(starting, "IN_MEMORY", held)
    looks = Looks(monkeypatch, backend, starting, lloyd)
    k_means(noise(600), 20, max_iter=0)
    compared = sum(rows * drawn for rows, drawn in looks.sizes)
    known = 600 * 20 + 600 * 2 if held == 2**28 else 300 * 20 + 300 * 2 + 600 * 20
    assert compared == known


@pytest.mark.parametrize("k", [3, 40])
def test_another_default_type_changes_nothing(backend, k):
    points = noise()
    expected = lloyd.lloyd(points, initial_centers(points, k, 5, 0, backend)[0], 5, backend)[0]
    torch.set_default_dtype(torch.float64)
    try:
        first, known = initial_centers(points, k, 5, 0, backend)
        found = lloyd.lloyd(points, first, 5, backend, known)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_another_seed_draws_another_start(backend):
    starts = [initial_centers(noise(), 10, 5, seed, backend)[0] for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
