import numpy as np
import pytest
import torch
from torch.nn import functional

from udmlss._row_store import map_rows
from udmlss.neighbors import approximate, nearest, neighbor_lists


def photographs(n=3000, d=16):
    """Return rows of classes of 20 in a few directions, some with an offset that dominates."""
    centers = functional.normalize(torch.randn(n // 20, d))
    return centers.repeat_interleave(20, dim=0)[torch.randperm(n)] + 0.4 * torch.randn(n, d) / d**0.5


@pytest.fixture
def approximate_search(monkeypatch):
    monkeypatch.setattr(approximate, "_EXACT", 0)


@pytest.mark.parametrize("offset", [0, 300])
@pytest.mark.usefixtures("approximate_search")
def test_the_reported_recall_is_that_of_all_rows_and_reaches_the_aim(monkeypatch, offset):
    rows = (photographs() + torch.eye(16)[0] * offset).double()
    exact = nearest(rows, 10)[1]
    for recall in (0.7, 0.95):
        lists = neighbor_lists(rows, 10, recall=recall)
        found = (lists.indices.unsqueeze(2) == exact.unsqueeze(1)).any(dim=2).double().mean()
        assert recall <= lists.recall < 1
        assert lists.recall == pytest.approx(float(found), abs=0.03)
        assert (lists.indices != torch.arange(len(rows)).unsqueeze(1)).all()
        assert (lists.similarities.diff(dim=1) <= 0).all()
        cosines = functional.cosine_similarity(rows.unsqueeze(1), rows[lists.indices], dim=2)
        torch.testing.assert_close(lists.similarities, cosines.float(), atol=1e-6, rtol=0)


def test_small_sets_a_recall_of_1_and_rows_without_near_cells_are_searched_exactly(monkeypatch):
    rows = photographs(400)
    for changes, aim, found in [({}, 0.5, rows), ({"_EXACT": 0}, 1, rows), ({}, 0.9, torch.randn(400, 64))]:
        for name, value in changes.items():
            monkeypatch.setattr(approximate, name, value)
        lists = neighbor_lists(found, 5, recall=aim)
        assert torch.equal(lists.indices, nearest(found, 5)[1])
        assert lists.recall == 1


@pytest.mark.usefixtures("approximate_search")
def test_of_rows_without_near_cells_that_are_too_many_a_limited_number_of_pairs_is_compared(monkeypatch):
    rows, search, n_pairs = torch.randn(3000, 16), approximate.search, []
    spy = lambda found, k, queries: n_pairs.append(len(found) * len(queries)) or search(found, k, queries)  # noqa: E731
    monkeypatch.setattr(approximate, "_AFFORDABLE", len(rows) ** 2 * (16 + 128) / 2)
    monkeypatch.setattr(approximate, "search", spy)
    with pytest.warns(UserWarning, match=r"contain \d\d\.\d% of the nearest .*, not 95%"):
        lists = neighbor_lists(rows, 10)
    exact = nearest(rows, 10)[1]
    found = (lists.indices.unsqueeze(2) == exact.unsqueeze(1)).any(dim=2).double().mean()
    assert lists.recall == pytest.approx(float(found), abs=0.03)
    assert sum(n_pairs[1:]) < 0.25 * len(rows) ** 2  # half of a quarter, and cells have different sizes
    monkeypatch.setattr(approximate, "search", search)
    assert torch.equal(neighbor_lists(rows, 10, recall=1).indices, exact)


@pytest.mark.usefixtures("approximate_search")
def test_rows_in_cells_of_equal_centers_reach_the_recall():
    rows = photographs()
    rows[::10] = rows[0] + 1e-5 * torch.randn(300, 16)
    exact = nearest(rows, 10)[1]
    found = (neighbor_lists(rows, 10).indices.unsqueeze(2) == exact.unsqueeze(1)).any(dim=2).double().mean()
    assert found >= 0.95


@pytest.mark.usefixtures("approximate_search")
def test_rows_mapped_from_a_file_have_the_same_lists(tmp_path):
    rows = photographs().half()
    np.save(tmp_path / "rows.npy", rows.numpy())
    expected, found = neighbor_lists(rows, 10), neighbor_lists(map_rows(tmp_path / "rows.npy"), 10)
    assert torch.equal(expected.indices, found.indices)
    assert expected.recall == found.recall < 1


@pytest.mark.usefixtures("approximate_search")
def test_thousands_of_equal_rows_have_each_other_as_neighbors_and_are_not_compared(monkeypatch):
    n_pairs = []
    search = approximate.search
    spy = lambda rows, k, queries=None: (  # noqa: E731
        n_pairs.append(len(rows) * len(rows if queries is None else queries)) or search(rows, k, queries)
    )
    monkeypatch.setattr(approximate, "search", spy)
    rows = photographs()
    rows[::2] = rows[0]
    lists = neighbor_lists(rows, 10)
    assert (rows[lists.indices[::2]] == rows[0]).all()
    assert (lists.indices != torch.arange(len(rows)).unsqueeze(1)).all()
    assert sum(n_pairs) < len(rows) ** 2 / 2


@pytest.mark.usefixtures("approximate_search")
def test_rows_that_differ_by_rounding_do_not_make_the_search_exact():
    rows = photographs()
    rows[::2] = rows[0] * (1 + 1e-7 * torch.randn(len(rows) // 2, 1))
    lists = neighbor_lists(rows, 10)
    assert 0.9 < lists.recall < 1
