import pytest
import torch
from ranks_program import RECALLS, TIMEOUT, clusters_of, lists_of, shared_rows

from udmlss.distributed import run_with_helpers
from udmlss.neighbors import approximate


def test_each_rank_works_on_its_part_and_every_rank_gets_the_result(ranks):
    expected = torch.tensor([[row, row % len(ranks)] for row in range(7)])
    assert all(torch.equal(found["work"], expected) for found in ranks)


def test_a_matrix_that_is_shared_again_is_not_sent_again(ranks):
    assert [found["times sent"] for found in ranks] == [2] * len(ranks)


@pytest.mark.parametrize("recall", RECALLS)
def test_lists_of_neighbors_that_all_ranks_search_are_those_of_one_process(ranks, monkeypatch, recall):
    monkeypatch.setattr(approximate, "_EXACT", 0)
    expected = lists_of(shared_rows(), recall)
    for found in ranks:
        similarities, indices, reached = found["shared lists"][recall]
        assert torch.equal(similarities, expected[0])
        assert torch.equal(indices, expected[1])
        assert reached == expected[2]


def test_clusters_that_all_ranks_compute_are_those_of_one_process(ranks):
    expected, _ = clusters_of(shared_rows())
    for found in ranks:
        labels, n_shared = found["shared clusters"]
        assert torch.equal(labels, expected)
        assert n_shared > 1


def test_an_error_of_the_work_is_raised_on_all_ranks(ranks):
    for rank, found in enumerate(ranks):
        kind, text, seconds = found["work fails"]
        named = (RuntimeError, "rank 1 failed with OSError: no memory")
        assert (kind, text) == ((OSError, "no memory") if rank == 1 else named)
        assert seconds < TIMEOUT / 4


@pytest.mark.parametrize(
    ("name", "message"), [("function with helpers fails", "disk full"), ("unpicklable work", "pickle")]
)
def test_an_error_of_the_function_is_raised_on_all_ranks(ranks, name, message):
    first, *others = [found[name] for found in ranks]
    assert message in first[1]
    assert all(kind is RuntimeError and text.startswith("rank 0 failed with ") for kind, text, _ in others)


def test_a_single_process_has_no_helpers():
    assert run_with_helpers(lambda share: share) is None
