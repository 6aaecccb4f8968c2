import pytest
import torch
from points import blobs, noise

from udmlss import clustering, starting
from udmlss.clustering import k_means
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
    start = start_of(points, 10, 5, 0, backend)
    known = {tuple(row) for row in points.tolist()}
    assert start.shape == (10, 8)
    assert len(drawn_from[0]) == size
    assert {tuple(row) for row in drawn_from[0].tolist()} <= known
    assert (size in {10, 300}) == ({tuple(row) for row in start.tolist()} <= known)


@pytest.fixture
def many(monkeypatch):
    """More than 16 points are many, so that they are drawn several at once."""
    monkeypatch.setattr(starting, "_ONE_BY_ONE", 16)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("seed", range(3))
def test_points_drawn_several_at_once_are_in_nearly_all_groups(backend, seed):
    points, group = blobs(k=200, each=5, apart=200)
    of = dict(zip(map(tuple, points.tolist()), group.tolist(), strict=True))
    drawn = far_apart(points, 200, seed, backend)
    assert len({of[tuple(row)] for row in drawn.tolist()}) >= 195


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("k", [17, 40, 300])
def test_no_point_is_drawn_twice_and_as_many_as_are_asked_for(backend, k):
    drawn = far_apart(noise(), k, 0, backend)
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn) == k


@pytest.mark.usefixtures("many")
def test_of_few_points_that_differ_all_are_drawn_and_equal_ones_fill_up(backend):
    points = noise(20).repeat(3, 1)
    drawn = far_apart(points, 40, 0, backend)
    assert len(drawn) == 40
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in points.tolist()}


@pytest.mark.usefixtures("many")
def test_few_looks_at_all_points_draw_many(monkeypatch):
    looks, (device, closest) = [], searcher(faiss, torch.device("cpu"))
    looking = lambda points, drawn, k: looks.append(len(drawn)) or closest(points, drawn, k)  # noqa: E731
    monkeypatch.setattr(starting, "searcher", lambda *_: (device, looking))
    far_apart(noise(3000), 2000, 0, faiss)
    assert len(looks) < 200
    assert sum(looks) < 2000
    assert 50 < max(looks) <= 62  # a sixteenth of half


def test_another_seed_draws_another_start(backend):
    starts = [start_of(noise(), 10, 5, seed, backend) for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
