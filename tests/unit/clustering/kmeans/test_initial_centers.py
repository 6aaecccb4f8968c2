from collections import Counter
from statistics import fmean

import numpy as np
import pytest
import torch
from points import blobs, noise, same_clusters

from udmlss.clustering.kmeans import initial_centers, k_means, lloyd
from udmlss.neighbors.backends import euclidean_search


def rows_of(points):
    return set(map(tuple, points.tolist()))


def test_separate_groups_are_found_from_a_sample(monkeypatch):
    monkeypatch.setattr(initial_centers, "IN_MEMORY", 2000)
    monkeypatch.setattr(initial_centers, "_SAMPLE_PER_CLUSTER", 20)
    points, groups = blobs()
    for seed in range(4):
        assert same_clusters(k_means(points, 12, seed=seed), groups)


@pytest.mark.parametrize(
    ("in_memory", "per_cluster", "size"), [(2399, 3, 30), (2399, 64, 299), (2400, 3, 300), (1, 3, 10)]
)
def test_the_centers_come_from_all_points_or_from_k_means_on_a_sample(monkeypatch, in_memory, per_cluster, size):
    samples, choose = [], initial_centers.kmeans_plusplus
    monkeypatch.setattr(initial_centers, "IN_MEMORY", in_memory)
    monkeypatch.setattr(initial_centers, "_SAMPLE_PER_CLUSTER", per_cluster)
    monkeypatch.setattr(initial_centers, "kmeans_plusplus", lambda *args: samples.append(args[0]) or choose(*args))
    points = noise()
    centers, assignment = initial_centers.initial_centers(points, 10, 5, 0)
    assert centers.shape == (10, 8)
    assert len(samples[0]) == size
    assert rows_of(samples[0]) <= rows_of(points)
    assert (size in {10, 300}) == (rows_of(centers) <= rows_of(points))
    assert (assignment is None) == (in_memory < 2400)


def potential(points, centers):
    """Return the sum of squared distances to the nearest center."""
    return float(torch.cdist(points.double(), centers.double()).square().amin(dim=1).sum())


def sequential_kmeans_plusplus(points, k, seed, n_trials):
    """Choose centers with all distances updated after each; of some trials take the one of the smallest potential."""
    rng, squares = np.random.default_rng(seed), torch.cdist(points.double(), points.double()).square().numpy()
    chosen = [rng.integers(len(points))]
    while len(chosen) < k:
        distances = squares[chosen].min(axis=0)
        trials = rng.choice(len(points), n_trials, p=distances / distances.sum())
        chosen.append(min(trials, key=lambda trial: np.minimum(distances, squares[trial]).sum()))
    return points[chosen]


@pytest.mark.parametrize(("k", "scale"), [(8, 2), (60, 10 / 3), (100, 2.5)])
def test_the_centers_are_nearly_as_good_as_those_of_sequential_greedy_kmeans_plusplus(k, scale):
    points, seeds = blobs(k, 2000 // k, 16, scale)[0], range(6)
    ours = fmean(potential(points, initial_centers.kmeans_plusplus(points, k, seed)[0]) for seed in seeds)
    n_trials = 2 + int(np.log(k))
    greedy = fmean(potential(points, sequential_kmeans_plusplus(points, k, seed, n_trials)) for seed in seeds)
    plain = fmean(potential(points, sequential_kmeans_plusplus(points, k, seed, 1)) for seed in seeds)
    assert ours < 0.9 * plain
    assert ours < 1.05 * greedy


@pytest.mark.parametrize("k", [8, 300])
def test_the_centers_of_many_clusters_are_as_good_as_those_of_sequential_kmeans_plusplus(monkeypatch, k):
    monkeypatch.setattr(initial_centers, "_MAX_GREEDY_CLUSTERS", 1)
    points, seeds = blobs(k, 1500 // k, 16, scale=2)[0], range(10)
    ours = [potential(points, initial_centers.kmeans_plusplus(points, k, seed)[0]) for seed in seeds]
    theirs = [potential(points, sequential_kmeans_plusplus(points, k, seed, 1)) for seed in seeds]
    assert fmean(ours) == pytest.approx(fmean(theirs), rel=0.05)


def test_the_remaining_weights_do_not_depend_on_the_origin():
    points, candidates, weights = noise(200, 32), torch.arange(200), torch.full((200,), 64.0)
    near, far = (initial_centers._remaining_weights(points + offset, candidates, weights, 1e-6) for offset in (0, 3000))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-3)
    expected = torch.cdist(points.double(), points.double()).square() / 64
    torch.testing.assert_close(near, expected.clamp(max=1).float())


def test_the_centers_are_in_nearly_all_groups():
    points, groups = blobs(k=200, each=5, scale=200)
    group_of = dict(zip(map(tuple, points.tolist()), groups.tolist(), strict=True))
    for seed in range(3):
        centers, _ = initial_centers.kmeans_plusplus(points, 200, seed)
        assert len({group_of[row] for row in rows_of(centers)}) >= 199


def test_the_centers_are_k_different_points_and_the_assignment_is_to_the_nearest():
    points = noise()
    for k in (2, 17, 100, 300):
        centers, assignment = initial_centers.kmeans_plusplus(points, k, 0)
        assert len(rows_of(centers)) == len(centers) == k
        distances, labels = torch.cdist(points, centers).square().min(dim=1)
        assert torch.equal(assignment.labels, labels)
        torch.testing.assert_close(assignment.distances, distances, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(assignment.lower_bounds, assignment.distances)


@pytest.mark.parametrize("k", [40, 60])
def test_if_few_points_differ_all_of_them_are_centers_before_equal_ones_are(k):
    points = noise(20).repeat(3, 1)
    centers, _ = initial_centers.kmeans_plusplus(points, k, 0)
    counts = Counter(map(tuple, centers.tolist()))
    assert len(centers) == k
    assert counts.keys() == rows_of(points)
    assert max(counts.values()) <= 3


def test_the_assignment_of_kmeans_plusplus_does_not_change_the_result_of_lloyd():
    points = noise()
    for k in (2, 3, 4, 20, 100):
        for max_iter in (0, 1, 20):
            centers, assignment = initial_centers.kmeans_plusplus(points, k, 0)
            with_assignment, means, _ = lloyd.lloyd(points, centers, max_iter, assignment)
            without, expected, _ = lloyd.lloyd(points, centers, max_iter)
            assert torch.equal(with_assignment, without)
            torch.testing.assert_close(means, expected)


@pytest.fixture
def searches(monkeypatch):
    """The numbers of points and of centers that each search compares."""
    sizes = []
    device, search = euclidean_search(torch.device("cpu"))
    spy = lambda points, centers, k: sizes.append((len(points), len(centers))) or search(points, centers, k)  # noqa: E731
    for module in (initial_centers, lloyd):
        monkeypatch.setattr(module, "euclidean_search", lambda *_: (device, spy))
    return sizes


@pytest.mark.parametrize("n_different", [5000, 100, 10])
def test_few_searches_of_all_points_choose_many_centers(searches, n_different):
    initial_centers.kmeans_plusplus(noise(n_different).repeat(5000 // n_different, 1), 2000, 0)
    assert sum(n_centers for _, n_centers in searches) == 2000
    assert len(searches) < 30


@pytest.mark.parametrize(("in_memory", "expected"), [(2**28, 600 * 20), (2400, 300 * 20 + 600 * 20)])
def test_k_means_does_not_repeat_the_searches_of_kmeans_plusplus(searches, monkeypatch, in_memory, expected):
    monkeypatch.setattr(initial_centers, "IN_MEMORY", in_memory)
    k_means(noise(600), 20, max_iter=0)
    assert sum(n_points * n_centers for n_points, n_centers in searches) == expected


def test_the_default_dtype_does_not_change_the_result():
    points = noise()
    for k in (3, 40):
        expected = lloyd.lloyd(points, initial_centers.initial_centers(points, k, 5, 0)[0], 5)[0]
        torch.set_default_dtype(torch.float64)
        try:
            centers, assignment = initial_centers.initial_centers(points, k, 5, 0)
            found = lloyd.lloyd(points, centers, 5, assignment)[0]
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(found, expected)


def test_the_centers_depend_on_the_seed_alone():
    first, again, other = (initial_centers.initial_centers(noise(), 10, 5, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
