"""Neighbors before and after training."""

import torch

from udmlss.neighbors import nearest
from udmlss.report.neighbor_changes import compare_neighbors, sample_rows


def test_neighbors_are_those_of_each_embedding_and_the_changes_their_differences(run):
    queries = torch.tensor([0, 7, 54])
    found = compare_neighbors(queries, run.embeddings, run.start_embeddings, 5)
    after, before = (nearest(rows, 5)[1][queries].tolist() for rows in (run.embeddings, run.start_embeddings))
    assert [each.after for each in found] == after
    assert [each.before for each in found] == before
    for each in found:
        assert each.gained | set(each.before) == each.lost | set(each.after)
        assert not each.gained & set(each.before)
    assert compare_neighbors(queries, run.embeddings, None, 5)[0].gained == set()


def test_small_sets_have_fewer_neighbors_and_a_single_image_none():
    assert sorted(compare_neighbors(torch.tensor([1]), torch.eye(3), None, 6)[0].after) == [0, 2]
    assert compare_neighbors(torch.tensor([0]), torch.eye(1), None, 6) == []


def test_samples_are_sorted_distinct_and_repeatable():
    rows = sample_rows(1000, 50, seed=3)
    assert torch.equal(rows, rows.unique())
    assert len(rows) == 50
    assert torch.equal(rows, sample_rows(1000, 50, seed=3))
    assert not torch.equal(rows, sample_rows(1000, 50, seed=4))
    assert torch.equal(sample_rows(4, 50, seed=0), torch.arange(4))
