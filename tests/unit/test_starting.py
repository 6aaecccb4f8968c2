from collections import Counter
from itertools import permutations

import pytest
import torch
from points import blobs, noise
from scipy.stats import chisquare

from udmlss import clustering, starting
from udmlss.clustering import k_means
from udmlss.lloyd import lloyd
from udmlss.searching import searcher
from udmlss.starting import far_apart, start_of

faiss = pytest.importorskip("faiss")


@pytest.fixture(params=["faiss", "scikit-learn"])
def backend(request):
    return faiss if request.param == "faiss" else None


@pytest.mark.parametrize("seed", range(4))
def test_groups_far_apart_are_found_from_a_sample(backend, monkeypatch, seed):
    monkeypatch.setattr(starting, "HELD", 2000)
    monkeypatch.setattr(starting, "_SAMPLED", 20)
    monkeypatch.setattr(clustering, "_import_faiss", lambda _: backend)
    points, group = blobs()
    pairs = set(zip(k_means(points, 12, seed=seed).tolist(), group.tolist(), strict=True))
    assert len(pairs) == 12


@pytest.mark.parametrize(("held", "sampled", "size"), [(2399, 3, 30), (2399, 64, 299), (2400, 3, 300), (1, 3, 10)])
def test_the_start_is_drawn_from_all_points_or_made_from_a_sample(backend, monkeypatch, held, sampled, size):
    drawn_from, draw = [], starting.far_apart
    monkeypatch.setattr(starting, "HELD", held)
    monkeypatch.setattr(starting, "_SAMPLED", sampled)
    monkeypatch.setattr(starting, "far_apart", lambda *args: drawn_from.append(args[0]) or draw(*args))
    points = noise()
    start, known_then = start_of(points, 10, 5, 0, backend)
    known = {tuple(row) for row in points.tolist()}
    assert start.shape == (10, 8)
    assert len(drawn_from[0]) == size
    assert {tuple(row) for row in drawn_from[0].tolist()} <= known
    assert (size in {10, 300}) == ({tuple(row) for row in start.tolist()} <= known)
    assert (known_then is None) == (held < 2400)


def chances_by_hand(points, k):
    """Return how likely each sequence of k points is when each is drawn by its squared distance to those before."""
    squares = torch.cdist(points, points).square().tolist()
    chances = {}
    for drawn in permutations(range(len(points)), k):
        chances[drawn] = 1 / len(points)
        for place in range(1, k):
            apart = [min(squares[each][other] for other in drawn[:place]) for each in range(len(points))]
            chances[drawn] *= apart[drawn[place]] / sum(apart)
    return chances


def test_candidates_of_one_look_are_drawn_as_if_one_by_one():
    points, counts, n = torch.tensor([[0.0], [3.0], [4.0], [6.0], [7.0], [10.0]]), Counter(), 4000
    places = {value: place for place, value in enumerate(points.flatten().tolist())}
    for seed in range(n):
        drawn = [places[value] for value in far_apart(points, 4, seed, faiss)[0].flatten().tolist()]
        counts[frozenset(drawn[:2]), drawn[2], drawn[3]] += 1  # the last two by one look
    expected = Counter()
    for drawn, chance in chances_by_hand(points, 4).items():
        expected[frozenset(drawn[:2]), drawn[2], drawn[3]] += n * chance
    frequent = [drawn for drawn in expected if expected[drawn] > 10]
    observed, likely = ([count[drawn] for drawn in frequent] for count in (counts, expected))
    assert sum(likely) > 0.9 * n
    assert chisquare([*observed, n - sum(observed)], [*likely, n - sum(likely)]).pvalue > 0.001


@pytest.mark.parametrize("seed", range(3))
def test_the_points_drawn_are_in_nearly_all_groups(backend, seed):
    points, group = blobs(k=200, each=5, apart=200)
    of = dict(zip(map(tuple, points.tolist()), group.tolist(), strict=True))
    drawn, _ = far_apart(points, 200, seed, backend)
    assert len({of[tuple(row)] for row in drawn.tolist()}) >= 199


@pytest.mark.parametrize("k", [2, 17, 40, 300])
def test_no_point_is_drawn_twice_and_as_many_as_are_asked_for(backend, k):
    drawn, _ = far_apart(noise(), k, 0, backend)
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn) == k


@pytest.mark.parametrize("k", [40, 60])
def test_of_few_points_that_differ_all_are_drawn_and_equal_ones_fill_up(backend, k):
    points = noise(20).repeat(3, 1)
    drawn, _ = far_apart(points, k, 0, backend)
    times = Counter(map(tuple, drawn.tolist()))
    assert len(drawn) == k
    assert times.keys() == set(map(tuple, points.tolist()))
    assert max(times.values()) <= 3


@pytest.mark.parametrize("k", [2, 7, 100])
def test_what_is_known_then_is_which_of_the_points_drawn_is_nearest(backend, k):
    points = noise()
    drawn, known = far_apart(points, k, 0, backend)
    nearest, labels = torch.cdist(points, drawn).square().min(dim=1)
    assert torch.equal(known.labels, labels)
    torch.testing.assert_close(known.nearest, nearest, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(known.others, known.nearest)


@pytest.mark.parametrize("k", [2, 3, 4, 20, 100])
@pytest.mark.parametrize("n_iterations", [0, 1, 20])
def test_k_means_gives_the_same_clusters_whether_or_not_it_is_told(backend, k, n_iterations):
    points = noise()
    drawn, known = far_apart(points, k, 0, backend)
    told, centroids = lloyd(points, drawn, n_iterations, backend, known)
    found, means = lloyd(points, drawn, n_iterations, backend)
    assert torch.equal(told, found)
    torch.testing.assert_close(centroids, means)


@pytest.mark.parametrize("differing", [5000, 100])
def test_few_looks_at_all_points_draw_many(monkeypatch, differing):
    looks, (device, closest) = [], searcher(faiss, torch.device("cpu"))
    looking = lambda points, drawn, k: looks.append(len(drawn)) or closest(points, drawn, k)  # noqa: E731
    monkeypatch.setattr(starting, "searcher", lambda *_: (device, looking))
    far_apart(noise(differing).repeat(5000 // differing, 1), 4000, 0, faiss)
    assert sum(looks) == 4000
    assert 500 < max(looks) <= 1024
    assert len(looks) < 30


def test_another_seed_draws_another_start(backend):
    starts = [start_of(noise(), 10, 5, seed, backend)[0] for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
