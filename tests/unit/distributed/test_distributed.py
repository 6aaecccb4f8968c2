"""Real processes run this file as their program and save what they found; the tests judge that."""

import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from udmlss import EmbeddingModel, PseudoLabels, rotate_four_ways
from udmlss.distributed import (
    SynchronizedErrors,
    all_gather_objects,
    gather,
    gather_shards,
    is_rank_zero,
    mean_over_ranks,
    process_group,
    rank,
    run_on_rank_zero,
    shard,
    world_size,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import processes

pytestmark = pytest.mark.xdist_group("distributed")  # so that the processes start once

SECONDS = 120  # until a rank gives up waiting; nothing here should come near
BATCH = 8
SIZES = (1, 2, 7, 10, 100)
LOSSES = {
    "pairs": lambda: losses.MultiSimilarityLoss(2, 40, 0.5),
    "proxies": lambda: losses.ProxyAnchorLoss(4, 5),
    "a classifier": lambda: losses.ArcFaceLoss(4, 5),
}
ERRORS = {
    "error": ValueError("image 42 is broken"),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
}


class Whole(nn.Module):
    """All that a step sends through DistributedDataParallel: a trunk called twice, a head, the loss of all ranks."""

    def __init__(self, name):
        super().__init__()
        self.model = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh()), nn.Linear(6, 5))
        self.head = nn.Linear(6, 4)
        self.loss = LOSSES[name]()

    def forward(self, images, labels):
        turned, turns = rotate_four_ways(images)
        rotation = nn.functional.cross_entropy(self.head(self.model.trunk(turned)), turns)
        return self.loss(gather(self.model(images)), gather(labels)) + rotation


def whole(name):
    torch.manual_seed(0)
    return Whole(name).double()


def batches(n_ranks):
    """Return the batch of each rank."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(n_ranks * BATCH, 3, 2, 2, generator=draws, dtype=torch.float64)
    labels = torch.arange(n_ranks * BATCH) % 4
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def gradients(module):
    return {name: part.grad for name, part in module.named_parameters() if part.grad is not None}


def gradients_inside(name):
    module = whole(name)
    parallel = DistributedDataParallel(module)  # has to live until the backward pass is done
    parallel(*batches(world_size())[rank()]).backward()
    return gradients(module)


def gradients_outside(name):
    """Return the gradients of a model within DistributedDataParallel, with a loss that is left out of it."""
    module = whole(name)
    parallel = DistributedDataParallel(module.model)
    images, labels = batches(world_size())[rank()]
    module.loss(gather(parallel(images)), gather(labels)).backward()
    return gradients(module)


def gradient_of_different_losses():
    rows = torch.ones(2, 3, requires_grad=True)
    weights = torch.arange(world_size() * 6.0).view(-1, 3)
    ((rank() + 1) * (weights * gather(rows)).sum()).backward()
    return rows.grad


def rows_of(items):
    return torch.tensor([[item, -item] for item in items], dtype=torch.float32)


def gathered_shards(numbers_at_once):
    before, gathering._AT_ONCE = gathering._AT_ONCE, numbers_at_once
    found = {n: gather_shards(rows_of(shard(n)), n) for n in SIZES}
    gathering._AT_ONCE = before
    return found


def pseudo_labels():
    return PseudoLabels(torch.arange(10**6) % 3, torch.eye(3), torch.tensor([4, 3, 3]), agreement=0.5)


def caught(function):
    """Return the error's type and text, and the seconds until it came."""
    begun = time.monotonic()
    try:
        function()
    except BaseException as error:  # noqa: BLE001 (an interrupt, too)
        return type(error), str(error), time.monotonic() - begun
    return None, "", time.monotonic() - begun


def fail(error):
    raise error


def end(errors):
    """Leave a block in which each rank raises its error, if it has one."""
    with SynchronizedErrors():
        if rank() in errors:
            raise errors[rank()]


def with_note():
    error = OSError("truncated")
    error.add_note("while taking item 42 of `images`")
    return error


def stop_asked_by(*ranks):
    with SynchronizedErrors() as fate:
        if rank() in ranks:
            fate.ask_stop()
    return fate.stop


def find():
    last = world_size() - 1
    me = float(rank())
    room = torch.empty(7, 2)
    gather_shards(rows_of(shard(7)), 7, out=room)
    return {
        "who": (rank(), world_size(), is_rank_zero()),
        "gathered": gather(torch.full((2, 3), rank())),
        "gathered in bfloat16": gather(torch.full((1,), me, dtype=torch.bfloat16, requires_grad=True)).detach(),
        "gathered columns": gather(torch.arange(6.0).view(2, 3).t()),
        "different losses": gradient_of_different_losses(),
        "inside": {name: gradients_inside(name) for name in LOSSES},
        "outside": {name: gradients_outside(name) for name in LOSSES},
        "shards": {n: list(shard(n)) for n in SIZES},
        "whole": gathered_shards(2**26),
        "whole in pieces": gathered_shards(1),
        "first alone": gather_shards(rows_of(shard(7)), 7, only_rank_zero=True),
        "into room": room,
        "pseudo-labels": run_on_rank_zero(pseudo_labels),
        "run by": run_on_rank_zero(rank),
        "means": mean_over_ranks(torch.tensor([me, 1.0, torch.nan if rank() == last else 0.0])),
        "first fails": caught(lambda: run_on_rank_zero(lambda: fail(OSError("disk full")))),
        "cannot be sent": caught(lambda: run_on_rank_zero(lambda: lambda: 0)),
        "all well": caught(lambda: end({})),
        **{name: caught(lambda error=error: end({1: error})) for name, error in ERRORS.items()},
        "note": caught(lambda: end({1: with_note()})),
        "two errors": caught(lambda: end({0: ValueError("first"), last: KeyError("last")})),
        "interrupt and error": caught(lambda: end({0: KeyboardInterrupt(), last: ValueError("last")})),
        "stop": [stop_asked_by(), stop_asked_by(0), stop_asked_by(last), stop_asked_by(0, last), stop_asked_by()],
        "still in step": gather(torch.tensor([rank()])),
    }


def main(folder):
    with process_group(timeout=timedelta(seconds=SECONDS)) as device:
        found = find() | {"device": device}
        torch.save(found, folder / f"{rank()}.pt")
        end({1: ValueError("the last word")})


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def ranks(request, tmp_path_factory):
    """What each rank found, how it ended and what it printed."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = processes.finish(processes.start(__file__, request.param, folder))
    files = [folder / f"{r}.pt" for r in range(request.param)]
    assert all(file.exists() for file in files), ended
    found = [torch.load(file, weights_only=False) for file in files]
    return [one | {"returncode": code, "printed": text} for one, (code, text) in zip(found, ended, strict=True)]


def test_each_rank_knows_its_number_and_its_device(ranks):
    assert [one["who"] for one in ranks] == [(r, len(ranks), r == 0) for r in range(len(ranks))]
    assert all(one["device"].type == ("cuda" if torch.cuda.is_available() else "cpu") for one in ranks)


def test_gathered_rows_come_in_the_order_of_the_ranks_and_keep_their_type(ranks):
    for one in ranks:
        assert torch.equal(one["gathered"], torch.arange(len(ranks)).repeat_interleave(2)[:, None].expand(-1, 3))
        assert torch.equal(one["gathered in bfloat16"], torch.arange(len(ranks), dtype=torch.bfloat16))
        assert torch.equal(one["gathered columns"], torch.arange(6.0).view(2, 3).t().repeat(len(ranks), 1))


def test_the_gradient_of_gathered_rows_is_the_sum_of_what_all_ranks_send_back(ranks):
    weights = torch.arange(len(ranks) * 6.0).view(-1, 2, 3)
    for one, weight in zip(ranks, weights, strict=True):
        assert torch.equal(one["different losses"], weight * sum(range(1, len(ranks) + 1)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_gradients_are_those_of_one_process_on_the_joined_batch(ranks, where, name):
    module = whole(name)
    images, labels = (torch.cat(parts) for parts in zip(*batches(len(ranks)), strict=True))
    if where == "inside":
        module(images, labels).backward()
    else:
        module.loss(module.model(images), labels).backward()
    expected = gradients(module)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for one in ranks:
        assert one[where][name].keys() == expected.keys()
        for parameter, gradient in one[where][name].items():
            assert torch.allclose(gradient, expected[parameter], rtol=0, atol=1e-10), parameter


@pytest.mark.parametrize("n", SIZES)
def test_shards_are_equally_long_and_hold_every_item(ranks, n):
    shards = [one["shards"][n] for one in ranks]
    assert {len(held) for held in shards} == {-(-n // len(ranks))}
    assert set().union(*shards) == set(range(n))


@pytest.mark.parametrize("how", ["whole", "whole in pieces"])
@pytest.mark.parametrize("n", SIZES)
def test_shards_are_gathered_in_order_and_each_item_once(ranks, n, how):
    assert all(torch.equal(one[how][n], rows_of(range(n))) for one in ranks)


def test_shards_are_gathered_on_the_first_rank_alone_if_asked(ranks):
    first, *others = [one["first alone"] for one in ranks]
    assert torch.equal(first, rows_of(range(7)))
    assert {tuple(other.shape) for other in others} == {(0, 2)}


def test_gathered_rows_go_where_they_are_asked_to(ranks):
    for one in ranks:
        assert torch.equal(one["into room"], rows_of(range(7)))


def test_every_rank_gets_the_pseudo_labels_of_the_first(ranks):
    expected = pseudo_labels()
    for one in ranks:
        found = one["pseudo-labels"]
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.centers, expected.centers)
        assert torch.equal(found.sizes, expected.sizes)
        assert found.agreement == 0.5


def test_a_function_runs_on_the_first_rank_alone(ranks):
    assert [one["run by"] for one in ranks] == [0] * len(ranks)


def test_means_over_ranks_are_equal_and_nan_stays(ranks):
    for one in ranks:
        assert one["means"][:2].tolist() == [(len(ranks) - 1) / 2, 1]
        assert one["means"][2].isnan()


def test_an_error_of_the_first_rank_reaches_all(ranks):
    first, *others = [one["first fails"] for one in ranks]
    assert first[:2] == (OSError, "disk full")
    assert {other[:2] for other in others} == {(RuntimeError, "rank 0 failed with OSError: disk full")}


def test_what_cannot_be_sent_is_an_error_on_all(ranks):
    first, *others = [one["cannot be sent"] for one in ranks]
    assert "pickle" in first[1]
    assert all(kind is RuntimeError and text.startswith("rank 0 failed with ") for kind, text, _ in others)


@pytest.mark.parametrize(("name", "told"), [("error", "ValueError: image 42 is broken"), ("exit", "SystemExit: 3")])
def test_a_rank_that_fails_raises_its_own_error_and_the_others_name_it(ranks, name, told):
    for r, one in enumerate(ranks):
        error = ERRORS[name]
        own = (type(error), str(error))
        assert one[name][:2] == (own if r == 1 else (RuntimeError, f"rank 1 failed with {told}"))


def test_the_others_are_told_an_errors_notes(ranks):
    assert ranks[0]["note"][1] == "rank 1 failed with OSError: truncated\nwhile taking item 42 of `images`"


def test_of_two_errors_each_rank_raises_its_own_and_the_others_name_the_first(ranks):
    found = [one["two errors"][:2] for one in ranks]
    expected = [(ValueError, "first"), (RuntimeError, "rank 0 failed with ValueError: first"), (KeyError, "'last'")]
    assert found == (expected if len(ranks) == 3 else expected[::2])


def test_an_interrupt_is_one_in_all_ranks(ranks):
    assert {one["interrupt"][0] for one in ranks} == {KeyboardInterrupt}


def test_an_error_counts_more_than_an_interrupt(ranks):
    found = [one["interrupt and error"][:2] for one in ranks]
    told = f"rank {len(ranks) - 1} failed with ValueError: last"
    expected = [(KeyboardInterrupt, ""), (RuntimeError, told), (ValueError, "last")]
    assert found == (expected if len(ranks) == 3 else expected[::2])


def test_a_block_that_ends_well_ends_well(ranks):
    assert {one["all well"][:2] for one in ranks} == {(None, "")}


@pytest.mark.parametrize("name", ["first fails", "cannot be sent", *ERRORS, "two errors", "interrupt and error"])
def test_no_rank_waits_for_one_that_failed(ranks, name):
    assert all(one[name][2] < SECONDS / 4 for one in ranks)


def test_all_ranks_stop_if_one_asks(ranks):
    assert [one["stop"] for one in ranks] == [[False, True, True, True, False]] * len(ranks)


def test_ranks_are_in_step_after_an_error_was_caught(ranks):
    assert all(torch.equal(one["still in step"], torch.arange(len(ranks))) for one in ranks)


def test_an_error_that_nobody_catches_ends_every_process_with_its_text(ranks):
    assert {one["returncode"] for one in ranks} == {1}
    assert "ValueError: the last word" in ranks[1]["printed"]
    assert "RuntimeError: rank 1 failed with ValueError: the last word" in ranks[0]["printed"]


def test_alone_nothing_is_sent():
    rows = torch.rand(4, 2, requires_grad=True)
    assert (rank(), world_size(), is_rank_zero()) == (0, 1, True)
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


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_alone_a_block_raises_its_error(error):
    with pytest.raises(type(error)) as raised:
        end({0: error})
    assert raised.value is error


def test_alone_a_stop_is_what_was_asked():
    assert stop_asked_by(0)
    assert not stop_asked_by()


def test_without_torchrun_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as device:
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert not distributed.is_initialized()


def test_a_group_that_is_there_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with process_group():
            assert distributed.is_initialized()
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


def test_a_group_of_nccl_alone_sends_from_the_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.to("meta"))
    assert joining.carried(torch.ones(2)).device.type == "meta"


@pytest.mark.parametrize("number", ["2", None])
def test_more_processes_than_gpus_are_refused(monkeypatch, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": number}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    rule = "`LOCAL_RANK` must name one of this machine's 2 GPUs, counted from 0"
    with pytest.raises(ValueError, match=f"{rule}, got {number or 'none'}. Start with"), process_group():
        pass


def test_rows_of_another_shard_are_refused():
    with pytest.raises(ValueError, match=r"`rows` must be those of `shard\(5\)`, 5 of them, got 4. Take that shard"):
        gather_shards(torch.ones(4, 2), 5)


def test_a_shard_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        shard(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
