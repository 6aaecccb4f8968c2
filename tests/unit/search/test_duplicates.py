import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from torch.nn import functional

from udmlss.neighbors import approximate
from udmlss.search import duplicates, near_duplicates


def groups_by_hand(rows, threshold):
    directions = functional.normalize(rows.double())
    _, labels = connected_components((directions @ directions.T >= threshold).numpy())
    groups = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    return sorted(group for group in groups if len(group) > 1)


def families():
    """Return rows of groups of 1 to 60 similar rows, and of pairs of groups that a chain of rows connects."""
    sizes = torch.tensor([1] * 20 + [2] * 10 + [3, 9, 10, 11, 12, 30, 60])
    centers = functional.normalize(torch.randn(len(sizes), 24)).repeat_interleave(sizes, dim=0)
    rows = centers + 0.02 * torch.randn(len(centers), 24)
    ends = rows[[-1, -100]]  # of two large groups
    chain = torch.stack([ends[0] * (1 - part) + ends[1] * part for part in torch.linspace(0.02, 0.98, 25)])
    return torch.cat([rows, chain])[torch.randperm(len(rows) + 25)] * 10


@pytest.mark.parametrize("pairs", [2**26, 50])
@pytest.mark.parametrize("threshold", [0.5, 0.95, 0.99, 0.999])
def test_groups_are_the_connected_components_of_all_similar_pairs(monkeypatch, pairs, threshold):
    monkeypatch.setattr(duplicates, "PAIRS", pairs)
    rows = families()
    assert near_duplicates(rows.numpy(), threshold) == groups_by_hand(rows, threshold)


def test_a_large_set_is_not_searched_exactly_and_has_the_same_groups(monkeypatch):
    monkeypatch.setattr(approximate, "_EXACT", 0)
    monkeypatch.setattr(approximate, "_LARGEST_FRACTION", 1)
    rows = torch.cat([families(), torch.randn(1500, 24)])
    searched, search = [], approximate.search
    monkeypatch.setattr(approximate, "search", lambda *arguments: searched.append(arguments[0]) or search(*arguments))
    assert near_duplicates(rows) == groups_by_hand(rows, 0.95)
    assert [len(part) for part in searched].count(len(rows)) == 1  # for the sample on which the recall is measured


@pytest.mark.parametrize("rows", [torch.ones(300, 4), torch.ones(1, 4)])
def test_equal_rows_are_one_group_and_a_single_row_is_none(rows):
    assert near_duplicates(rows) == ([list(range(300))] if len(rows) > 1 else [])


def test_pairs_are_the_most_similar_items_of_another_set():
    rows, copies = torch.randn(50, 8), torch.tensor([7, 30, 7])
    others = torch.cat([rows[copies] * 3 + 0.05 * torch.arange(3).unsqueeze(1), torch.randn(20, 8)])
    pairs = near_duplicates(rows, 0.99, other=others)
    assert [(one, other) for one, other, _ in pairs] == [(7, 0), (30, 1), (7, 2)]
    for one, other, similarity in pairs:
        assert similarity == pytest.approx(float(functional.cosine_similarity(rows[one], others[other], dim=0)), 1e-5)


def test_another_dimension_is_an_error():
    with pytest.raises(ValueError, match="`embeddings` and `other` must have the same dimension, got 3 and 4"):
        near_duplicates(torch.eye(3), other=torch.eye(4))
