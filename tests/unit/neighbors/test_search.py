import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from udmlss import _chunks, metrics, pair_with_neighbors
from udmlss.neighbors import average_with_neighbors, nearest, search


def nearest_by_hand(embeddings, queries=None):
    """Return for each query the indices of the items by descending cosine, without the query itself."""
    rows = functional.normalize(embeddings.double())
    directions = rows if queries is None else functional.normalize(queries.double())
    similarities = directions @ rows.T
    if queries is None:
        similarities.fill_diagonal_(-torch.inf)
    values, indices = similarities.sort(dim=1, descending=True)
    n = len(rows) - (queries is None)
    return values[:, :n].float(), indices[:, :n]


@pytest.mark.parametrize("n_queries", [None, 7])
def test_nearest_finds_the_most_similar_items_with_slices_of_any_size(monkeypatch, n_queries):
    embeddings = torch.randn(40, 5) * 10 ** torch.empty(40, 1).uniform_(-6, 6)
    queries = None if n_queries is None else torch.randn(n_queries, 5)
    values, indices = nearest_by_hand(embeddings, queries)
    for rows, n_queries_at_once, n_neighbors_at_once in [
        (2**16, 2**13, 2**24),
        (4, 9, 2**24),
        (9, 2**13, 90),
        (1, 1, 1),
    ]:
        monkeypatch.setattr(_chunks, "_ROWS", rows)
        monkeypatch.setattr(search, "_QUERIES_PER_CHUNK", n_queries_at_once)
        monkeypatch.setattr(search, "_NEIGHBORS_PER_CHUNK", n_neighbors_at_once)
        for k in (1, 7, indices.shape[1]):
            similarities, found = nearest(embeddings, k, queries=queries)
            assert torch.equal(found, indices[:, :k])
            torch.testing.assert_close(similarities, values[:, :k])


def test_no_search_compares_more_rows_than_a_slice(monkeypatch):
    sizes, most_similar = [], search.most_similar
    spy = lambda queries, items, k: sizes.append((len(queries), len(items))) or most_similar(queries, items, k)  # noqa: E731
    monkeypatch.setattr(search, "most_similar", spy)
    monkeypatch.setattr(search, "_QUERIES_PER_CHUNK", 100)
    monkeypatch.setattr(_chunks, "_ROWS", 64)
    nearest(torch.randn(500, 4), 3)
    assert all(n_queries <= 100 and n_items <= 64 for n_queries, n_items in sizes)
    assert sum(n_queries * n_items for n_queries, n_items in sizes) == 500 * 500


def test_an_item_is_not_its_own_neighbor_and_its_duplicate_is_one():
    assert metrics.nearest is nearest
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    assert nearest(embeddings, 1)[1].flatten().tolist() == [1, 0, 3, 2]
    assert nearest(embeddings, 1, queries=embeddings[2:])[1].flatten().tolist() == [2, 3]
    found = nearest(torch.ones(9, 2), 3)[1]
    assert found.shape == (9, 3)
    assert not (found == torch.arange(9).unsqueeze(1)).any()
    assert all(len(row.unique()) == 3 for row in found)


@pytest.fixture
def _untyped(monkeypatch):
    """Without the types of the signatures, which reject some arguments before our own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


ROWS = torch.randn(6, 3)


@pytest.mark.parametrize(
    ("arguments", "queries", "kind", "sentence"),
    [
        (
            (ROWS, 6),
            None,
            ValueError,
            r"`k=6` must not exceed the number of items .*, got 5\. Lower `k`, or add",
        ),
        ((ROWS, 7), ROWS, ValueError, r"`k=7` must not exceed the number of items .*, got 6\."),
        ((ROWS, 0), None, ValueError, r"`k` must be at least 1, got 0\."),
        ((ROWS, 1.5), None, TypeError, r"`k` must be an integer, got 1\.5 of type float\."),
        ((ROWS, 1), ROWS[:, :2], ValueError, r"`queries` and `embeddings` must have the same dimension, got 2 and 3"),
        ((ROWS, 1), ROWS / 0, ValueError, r"`queries` must be finite, got 6 of 6 rows"),
        ((ROWS / 0, 1), None, ValueError, r"`embeddings` must be finite, got 6 of 6 rows"),
        ((ROWS.long(), 1), None, TypeError, r"`embeddings` must be a floating-point tensor"),
    ],
)
@pytest.mark.usefixtures("_untyped")
def test_nearest_rejects_invalid_arguments(arguments, queries, kind, sentence):
    with pytest.raises(kind, match=sentence):
        nearest(*arguments, queries=queries)


def averaged_by_hand(embeddings, n_neighbors):
    directions = functional.normalize(embeddings)
    similarities = (directions @ directions.T).fill_diagonal_(2)  # an embedding comes before its neighbors
    weights = torch.linspace(1, 0, n_neighbors + 2)[:-1]
    order = similarities.argsort(dim=1, descending=True)[:, : n_neighbors + 1]
    return functional.normalize(torch.einsum("m,nmd->nd", weights, directions[order]))


@given(st.integers(2, 40), st.data())
@settings(max_examples=20, deadline=None)
def test_averages_with_neighbors_are_those_by_hand_in_slices_of_any_size(n, data):
    embeddings = 3 * torch.randn(n, 6)
    n_neighbors = data.draw(st.integers(1, n - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "_ROWS", data.draw(st.integers(1, n)))
        found = average_with_neighbors(embeddings, n_neighbors)
    torch.testing.assert_close(found, averaged_by_hand(embeddings, n_neighbors))


def test_averages_of_mutual_neighbors_remain_different():
    averages = average_with_neighbors(torch.randn(6, 8), 5)
    assert torch.cdist(averages, averages).fill_diagonal_(1).min() > 1e-3


def test_averages_reject_numbers_of_neighbors_out_of_range():
    with pytest.raises(ValueError, match=r"`n_neighbors=6` must be below the number of images, got 6\."):
        average_with_neighbors(ROWS, 6)
    with pytest.raises(ValueError, match=r"`n_neighbors` must be at least 1, got 0\."):
        average_with_neighbors(ROWS, 0)


@pytest.mark.parametrize(("n", "f"), [(2, 1), (30, 3), (30, 100)])
def test_a_fraction_of_one_pairs_each_image_with_its_nearest_neighbor(n, f):
    features = torch.randn(n, f, dtype=torch.float64)
    assert torch.equal(pair_with_neighbors(features, fraction=1), nearest_by_hand(features)[1][:, 0])
    assert pair_with_neighbors(features, fraction=0).tolist() == list(range(n))


def test_the_fraction_is_the_fraction_of_images_with_their_neighbor_and_half_by_default():
    features = torch.randn(2000, 3)
    own, neighbors = torch.arange(2000), pair_with_neighbors(features, fraction=1)
    for fraction in (0.2, np.float32(0.5)):
        found = pair_with_neighbors(features, fraction=fraction)
        assert (found == torch.where(found == own, own, neighbors)).all()
        assert (found != own).float().mean().item() == pytest.approx(fraction, abs=0.05)
    assert torch.equal(found, pair_with_neighbors(features))


def test_the_pairs_depend_on_the_seed_and_not_on_global_random_state():
    features = torch.randn(50, 3)
    before = torch.get_rng_state()
    first, again, other = (pair_with_neighbors(features, seed=seed) for seed in (1, np.int64(1), 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_duplicate_is_a_neighbor_and_zeros_have_neighbors():
    assert pair_with_neighbors(torch.eye(3).repeat(2, 1), fraction=1).tolist() == [3, 4, 5, 0, 1, 2]
    assert (pair_with_neighbors(torch.zeros(4, 3), fraction=1) != torch.arange(4)).all()


@pytest.mark.parametrize(
    ("features", "settings", "sentence"),
    [
        (torch.eye(3), {"fraction": -0.1}, r"`fraction` must lie in 0\.\.1, got -0\.1\."),
        (torch.eye(3), {"fraction": 1.5}, r"`fraction` must lie in 0\.\.1, got 1\.5\."),
        (torch.eye(3), {"seed": -1}, r"`seed` must be at least 0, got -1\."),
        (torch.ones(1, 3), {}, r"`features` must have at least two rows, got 1\."),
        (torch.tensor([[1.0], [torch.nan], [0.0]]), {}, r"`features` must be finite, got 1 of 3 rows"),
    ],
)
def test_pairs_reject_invalid_arguments(features, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        pair_with_neighbors(features, **settings)
