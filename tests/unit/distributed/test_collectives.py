import pytest
import torch
from ranks_program import LOSSES, SIZES, TrainingStep, batches, gradients, pseudo_labels, rows_of

from udmlss.distributed import all_gather_objects, gather, gather_shards, mean_over_ranks, run_on_rank_zero, shard


def test_gather_preserves_the_order_of_the_ranks_and_the_data_type(ranks):
    for found in ranks:
        assert torch.equal(found["gathered"], torch.arange(len(ranks)).repeat_interleave(2)[:, None].expand(-1, 3))
        assert torch.equal(found["gathered bfloat16"], torch.arange(len(ranks), dtype=torch.bfloat16))
        assert torch.equal(found["gathered columns"], torch.arange(6.0).view(2, 3).t().repeat(len(ranks), 1))


def test_the_gradient_of_gathered_rows_is_the_sum_over_the_losses_of_all_ranks(ranks):
    weights = torch.arange(len(ranks) * 6.0).view(-1, 2, 3)
    for found, weight in zip(ranks, weights, strict=True):
        assert torch.equal(found["gradient of different losses"], weight * sum(range(1, len(ranks) + 1)))


def expected_gradients(name, n_ranks, *, rotation=True):
    """Return the gradients of one process with the batches of all ranks."""
    step = TrainingStep(name)
    images, labels = (torch.cat(parts) for parts in zip(*batches(n_ranks), strict=True))
    (step(images, labels) if rotation else step.loss(step.model(images), labels)).backward()
    found = gradients(step)
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-3
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("where", ["loss inside", "loss outside"])
def test_gradients_are_those_of_one_process_with_all_batches(ranks, where, name):
    expected = expected_gradients(name, len(ranks), rotation=where == "loss inside")
    for found in ranks:
        torch.testing.assert_close(found[where][name], expected, rtol=0, atol=1e-10)


def test_gradients_of_data_parallel_are_equal_on_all_ranks_and_in_all_steps(ranks):
    expected = expected_gradients("proxies", len(ranks))
    first = ranks[0]["data parallel"][0]
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-10)
    for found in ranks:
        for step in found["data parallel"]:
            torch.testing.assert_close(step, first, rtol=0, atol=0)


@pytest.mark.parametrize("n", SIZES)
def test_shards_have_the_same_length_and_contain_every_item(ranks, n):
    shards = [found["shards"][n] for found in ranks]
    assert {len(items) for items in shards} == {-(-n // len(ranks))}
    assert set().union(*shards) == set(range(n))


@pytest.mark.parametrize("how", ["gathered shards", "gathered shards in steps"])
@pytest.mark.parametrize("n", SIZES)
def test_gathered_shards_contain_every_item_once_and_in_order(ranks, n, how):
    assert all(torch.equal(found[how][n], rows_of(range(n))) for found in ranks)


def test_shards_can_be_gathered_on_rank_0_alone(ranks):
    first, *others = [found["gathered on rank 0"] for found in ranks]
    assert torch.equal(first, rows_of(range(7)))
    assert {tuple(other.shape) for other in others} == {(0, 2)}


def test_shards_can_be_gathered_into_a_tensor(ranks):
    assert all(torch.equal(found["gathered into out"], rows_of(range(7))) for found in ranks)


def test_objects_are_gathered_in_the_order_of_the_ranks(ranks):
    assert all(found["objects"] == [{"rank": rank} for rank in range(len(ranks))] for found in ranks)


def test_every_rank_gets_the_pseudo_labels_of_rank_0(ranks):
    expected = pseudo_labels()
    for found in ranks:
        assert torch.equal(found["pseudo-labels"].labels, expected.labels)
        assert torch.equal(found["pseudo-labels"].sizes, expected.sizes)


def test_run_on_rank_zero_runs_on_rank_0_alone(ranks):
    assert [found["rank of run_on_rank_zero"] for found in ranks] == [0] * len(ranks)


def test_means_over_ranks_preserve_nan(ranks):
    for found in ranks:
        assert found["means"][:2].tolist() == [(len(ranks) - 1) / 2, 1]
        assert found["means"][2].isnan()


def test_a_single_process_sends_nothing():
    rows = torch.rand(4, 2, requires_grad=True)
    assert gather(rows) is rows
    assert gather_shards(rows, 4) is rows
    out = torch.empty(4, 2)
    assert gather_shards(rows.detach(), 4, out=out) is out
    assert torch.equal(out, rows)
    assert shard(4) == range(4)
    assert run_on_rank_zero(lambda: rows) is rows
    assert all_gather_objects(rows) == [rows]
    assert torch.equal(mean_over_ranks(rows[0]), rows[0])
    assert not mean_over_ranks(rows[0]).requires_grad


def test_rejects_rows_of_another_shard():
    with pytest.raises(ValueError, match=r"`rows` must be the 5 rows of `shard\(5\)`, got 4\. Pass one row per item"):
        gather_shards(torch.ones(4, 2), 5)


def test_rejects_a_shard_without_items():
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        shard(0)
