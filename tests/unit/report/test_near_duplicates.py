"""Groups of near-duplicates."""

import torch

from udmlss.report import near_duplicates
from udmlss.report.near_duplicates import find_groups


def test_groups_are_the_components_of_the_pairs_above_the_threshold():
    angles = torch.tensor([0.0, 90.0, 10.0, 20.0, 95.0, 180.0]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = find_groups(embeddings, threshold=0.98, seed=0)  # pairs up to 11.5 degrees
    assert found.groups == [[0, 2, 3], [1, 4]]
    assert found.n_searched == 6
    assert find_groups(embeddings[:1], 0.5, seed=0).groups == []
    assert find_groups(torch.eye(5), 0.5, seed=0).groups == []


def test_equal_images_are_one_group():
    embeddings = torch.cat([torch.ones(9, 4), torch.eye(4)])
    assert find_groups(embeddings, 0.95, seed=0).groups == [list(range(9))]


def test_a_large_set_is_sampled_and_the_rows_are_those_of_the_set(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_SEARCHED", 30)
    found = find_groups(torch.eye(50)[torch.arange(100) % 50], 0.95, seed=0)
    assert found.n_searched == 30
    assert found.groups
    assert all(first % 50 == second % 50 for first, second in found.groups)
