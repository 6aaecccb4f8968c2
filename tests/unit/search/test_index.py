import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended_gpu import pretended_gpu
from torch import nn

from udmlss import embed
from udmlss.neighbors import nearest
from udmlss.search import SearchIndex, index, near_duplicates
from udmlss.search.inverted_file import InvertedFile

NAMES = [f"image {number}.jpg" for number in range(600)]


def clustered(n=600, d=12, offset=0.0):
    """Return rows of classes of 20; with an offset, in a narrow cone."""
    rows = torch.randn(n // 20, d).repeat_interleave(20, dim=0) + 0.5 * torch.randn(n, d)
    rows[:, 0] += offset
    return rows


def recall(found, rows, queries, k):
    """Return the fraction of the k nearest rows that were found."""
    expected = nearest(rows, k, queries=queries)[1].numpy()
    return np.mean([len(np.intersect1d(one, other)) for one, other in zip(found, expected, strict=True)]) / k


@pytest.fixture
def approximate(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(index, "_EXACT", 0)


@pytest.mark.parametrize("to_input", [torch.clone, torch.Tensor.double, torch.Tensor.numpy])
def test_a_small_index_is_exact(to_input):
    rows = clustered() * torch.rand(600, 1)
    built = SearchIndex(to_input(rows), NAMES)
    ids, similarities = built.search(to_input(rows[:50]), 7)
    expected, indices = nearest(rows, 7, queries=rows[:50])
    assert ids.tolist() == np.array(NAMES)[indices.numpy()].tolist()
    np.testing.assert_allclose(similarities, expected.numpy(), atol=1e-6)
    assert similarities.dtype == np.float32
    assert built.recall == 1
    assert repr(built) == "SearchIndex(600 items, 12 dimensions, exact)"


@pytest.mark.usefixtures("approximate")
@pytest.mark.parametrize("offset", [0, 1000])
def test_a_large_index_reaches_the_recall_that_it_reports(offset):
    rows = clustered(3200, offset=offset)
    rows, queries = rows[:3000], rows[3000:]
    for target in (0.7, 0.95):
        built = SearchIndex(rows, target_recall=target, seed=2**40)
        assert target <= built.recall < 1
        ids, similarities = built.search(rows, 11)
        assert recall(ids, rows, rows, 11) == pytest.approx(built.recall, abs=0.05)
        assert (np.diff(similarities) <= 0).all()
        assert repr(built) == f"SearchIndex(3000 items, 12 dimensions, recall={built.recall:.3f})"
    ids, similarities = built.search(queries, 10)
    cosines = nn.functional.cosine_similarity(queries.double().unsqueeze(1), rows[ids].double(), dim=2)
    np.testing.assert_allclose(similarities, cosines.numpy(), atol=1e-6)


@pytest.mark.usefixtures("approximate")
def test_a_search_is_exact_without_faiss_and_where_cells_do_not_help(monkeypatch):
    rows = clustered()
    assert SearchIndex(rows, target_recall=1).recall == 1
    assert SearchIndex(rows).recall < 1
    for owner, name, value in ((InvertedFile, "_tune", lambda *_: False), (sys.modules, "faiss", None)):
        with monkeypatch.context() as patch:
            patch.setitem(owner, name, value) if owner is sys.modules else patch.setattr(owner, name, value)
            built = SearchIndex(rows)
            assert built.recall == 1
            assert recall(built.search(rows, 5)[0], rows, rows, 5) == 1


@pytest.mark.usefixtures("approximate")
def test_a_few_long_rows_are_searched_exactly():
    assert SearchIndex(torch.rand(12, 400)).recall == 1


@pytest.mark.usefixtures("approximate")
@pytest.mark.parametrize("rows", [torch.ones(600, 3), torch.zeros(600, 3), torch.eye(3).repeat(200, 1)])
def test_equal_rows_and_rows_of_zeros_have_their_similarities(rows):
    ids, similarities = SearchIndex(rows).search(rows[:5], 30)
    np.testing.assert_allclose(similarities, nearest(rows, 30, queries=rows[:5])[0].numpy(), atol=1e-6)
    assert all(len(set(found)) == 30 for found in ids.tolist())


@pytest.mark.usefixtures("approximate")
def test_more_neighbors_than_the_cells_have_are_found():
    rows = clustered()
    ids, _ = SearchIndex(rows, target_recall=0.3).search(rows[:5], 600)
    assert (np.sort(ids) == np.arange(600)).all()


@pytest.mark.parametrize("exact_up_to", [0, 2**22])
@pytest.mark.parametrize("names", [range(1600), [f"{number}.jpg" for number in range(1600)]])
def test_added_rows_are_found_and_removed_rows_are_not(monkeypatch, names, exact_up_to):
    monkeypatch.setattr(index, "_EXACT", exact_up_to)
    rows, names, order = clustered(1600), np.array(names), torch.randperm(1600)
    built = SearchIndex(rows[:700], names[:700])
    present = np.arange(700)
    for begin, end in ((700, 900), (900, 1400), (1400, 1600)):  # the cells are computed again once
        added = np.arange(begin, end)
        built.add(rows[added], names[added])
        removed = np.intersect1d(order[begin // 4 : begin // 2].numpy(), present)  # about every eighth
        built.remove(names[removed])
        present = np.concatenate([np.setdiff1d(present, removed), added])
        assert len(built) == len(present)
        assert built.ids.tolist() == names[present].tolist()
        ids, similarities = built.search(rows[present], 10)
        places = {name: place for place, name in enumerate(names[present].tolist())}
        found = np.array([[places[name] for name in each] for each in ids.tolist()])
        assert recall(found, rows[present], rows[present], 10) > 0.9
        assert similarities[:, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("approximate")
def test_the_cells_are_computed_again_when_half_of_the_items_have_been_removed():
    built = SearchIndex(clustered())
    cells = built._cells
    built.remove(range(299))
    assert built._cells is cells
    built.remove([299])
    assert built._cells is not cells
    assert built._cells.cells.ntotal == 300


def test_images_are_embedded_with_the_model():
    model, images = nn.Flatten(), torch.rand(20, 3, 4, 4)
    built = SearchIndex(embed(model, images), [Path("photos") / name for name in NAMES[:20]])
    ids, similarities = built.search_images(model, images[:6], k=1)
    assert ids[:, 0].tolist() == [str(Path("photos") / name) for name in NAMES[:6]]
    assert similarities == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("memory", [2**33, 100])
def test_an_index_on_a_gpu_finds_what_one_on_the_cpu_finds(monkeypatch, tmp_path, memory):
    monkeypatch.setattr(index, "_EXACT", 0)
    rows = clustered()
    expected = SearchIndex(rows, target_recall=1)
    with pretended_gpu(monkeypatch, memory=memory) as device:
        built = SearchIndex(rows[:500], device=device)
        built.add(rows[500:].to(device), range(500, 600))
        built.save(tmp_path / "index")
        for found in (built, SearchIndex.load(tmp_path / "index", device=device)):
            assert found._gallery.device.type == (device.type if memory > 100 else "cpu")
            assert found.recall == 1
            for settings in ({}, {"expand_neighbors": 3}, {"rerank_neighbors": 5}):
                ids, similarities = found.search(rows[:9].to(device), 5, **settings)
                expected_ids, expected_similarities = expected.search(rows[:9], 5, **settings)
                assert (ids == expected_ids).all()
                np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)
        assert near_duplicates(rows.to(device), 0.9) == near_duplicates(rows, 0.9)


WRONG = {
    "a k that exceeds the items": (lambda i: i.search(torch.eye(3), 4), ValueError, "`k=4` must not exceed the num"),
    "queries of another model": (
        lambda i: i.search(torch.eye(4), 1),
        ValueError,
        "`queries` must have 3 dimensions, as the items of the index, got 4. Embed them with the model",
    ),
    "rows of another model": (lambda i: i.add(torch.eye(4), list("wxyz")), ValueError, "`embeddings` must have 3 dim"),
    "an id that exists": (lambda i: i.add(torch.eye(3), list("xya")), ValueError, "`ids` must be new, got 'a', which"),
    "ids of another type": (lambda i: i.add(torch.eye(3), [1, 2, 3]), TypeError, "`ids` must be strings, as the exis"),
    "an unknown id": (lambda i: i.remove(["a", "x"]), ValueError, "`ids` must be in the index, got 'x', which is not"),
    "an unknown id of another type": (lambda i: i.remove([1]), TypeError, "`ids` must be strings, as the existing ids"),
    "all ids": (lambda i: i.remove(list("abc")), ValueError, "`ids` must leave an item in the index, got all 3 ids"),
    "too many neighbors": (
        lambda i: i.search(torch.eye(3), 1, rerank_neighbors=4),
        ValueError,
        r"`rerank_neighbors` must lie in 1\.\.2, got 4",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_an_error_and_the_index_does_not_change(name):
    call, kind, message = WRONG[name]
    built = SearchIndex(torch.eye(3), list("abc"))
    with pytest.raises(kind, match=message):
        call(built)
    ids, _ = built.search(torch.eye(3), 1)
    assert ids.flatten().tolist() == list("abc")
