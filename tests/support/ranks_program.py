"""A program of three processes that saves the results of `udmlss.distributed`, first of two ranks and then of three."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from udmlss import EmbeddingModel, PseudoLabels, rotate_four_ways
from udmlss.clustering import k_means
from udmlss.distributed import (
    SynchronizedErrors,
    all_gather_objects,
    collectives,
    data_parallel,
    gather,
    gather_shards,
    helpers,
    is_rank_zero,
    mean_over_ranks,
    process_group,
    rank,
    run_on_rank_zero,
    run_with_helpers,
    shard,
    synchronized,
    world_size,
)
from udmlss.neighbors import approximate, neighbor_lists
from udmlss.neighbors.sharing import share_searches

WORLD_SIZES = (2, 3)
TIMEOUT = 120  # seconds until a rank that waits for another one fails; the tests require a fraction of it
BATCH = 8
SIZES = (1, 2, 7, 10, 100)
RECALLS = (0.5, 1)
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


class TrainingStep(nn.Module):
    """The losses of a training step: the metric loss of all ranks, and the rotation loss of this rank."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.model = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh()), nn.Linear(6, 5))
        self.head = nn.Linear(6, 4)
        self.loss = LOSSES[name]()
        self.double()

    def forward(self, images, labels):
        rotated, rotations = rotate_four_ways(images)
        rotation_loss = nn.functional.cross_entropy(self.head(self.model.trunk(rotated)), rotations)
        return self.loss(gather(self.model(images), equal_losses=True), gather(labels)) + rotation_loss


def batches(n_ranks):
    """Return the batch of each rank."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n_ranks * BATCH, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.arange(n_ranks * BATCH) % 4
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def gradients(module):
    return {name: part.grad.clone() for name, part in module.named_parameters() if part.grad is not None}


def gradients_with_loss_inside(name):
    """Return the gradients of a model and its loss, both in `DistributedDataParallel`."""
    step = TrainingStep(name)
    parallel = DistributedDataParallel(step)  # must exist until the backward pass is done
    parallel(*batches(world_size())[rank()]).backward()
    return gradients(step)


def gradients_with_loss_outside(name):
    """Return the gradients of a model in `DistributedDataParallel` and of its loss outside of it."""
    step = TrainingStep(name)
    parallel = DistributedDataParallel(step.model)
    images, labels = batches(world_size())[rank()]
    step.loss(gather(parallel(images)), gather(labels)).backward()
    return gradients(step)


def gradients_of_data_parallel():
    """Return the gradients of the first three steps; the parameters do not change between them."""
    step = TrainingStep("proxies")
    parallel, found = data_parallel(step), []
    for _ in range(3):
        step.zero_grad()
        parallel(*batches(world_size())[rank()]).backward()
        found.append(gradients(step))
    return found


def gradient_of_different_losses():
    rows = torch.ones(2, 3, requires_grad=True)
    weights = torch.arange(world_size() * 6.0).view(-1, 3)
    ((rank() + 1) * (weights * gather(rows)).sum()).backward()
    return rows.grad


def rows_of(items):
    return torch.tensor([[item, -item] for item in items], dtype=torch.float32)


def gathered_shards(numbers_at_once):
    before, collectives._NUMBERS_AT_ONCE = collectives._NUMBERS_AT_ONCE, numbers_at_once
    found = {n: gather_shards(rows_of(shard(n)), n) for n in SIZES}
    collectives._NUMBERS_AT_ONCE = before
    return found


def pseudo_labels():
    return PseudoLabels.from_labels(torch.arange(10**6) % 3)


def rank_of_rows(matrix, part, n_parts):
    """Yield the rows of a part, and for each its number in the matrix and the rank that reads it."""
    for row in range(len(matrix))[part::n_parts]:
        yield torch.tensor([row]), torch.tensor([[int(matrix[row, 0]), rank()]])


def fail_on_rank_1(matrix, part, n_parts):
    yield from rank_of_rows(matrix, part, n_parts)
    if rank() == 1:
        raise OSError("no memory")


def share_twice(share, work=rank_of_rows):
    found = torch.full((7, 2), -1)
    for n in (2, 7):
        share(rows_of(range(n)), work, found.__setitem__)
    return found


def times_sent_when_shared_three_times(share):
    """Return how often a matrix is sent if one matrix is shared twice and then another one once."""
    found, rows = torch.full((7, 2), -1), rows_of(range(7))
    with patch("udmlss.distributed.helpers._send", wraps=helpers._send) as send:
        for matrix in (rows, rows, rows.clone()):
            found[:] = -1
            share(matrix, rank_of_rows, found.__setitem__)
            assert (found >= 0).all()
    return send.call_count


def shared_lists(recall):
    """Return lists of neighbors that all ranks search; other ranks receive the rows from rank 0."""
    rows = shared_rows() if rank() == 0 else None
    before, approximate._EXACT = approximate._EXACT, 0
    try:
        return run_with_helpers(lambda share: lists_of(rows, recall, share))
    finally:
        approximate._EXACT = before


def lists_of(rows, recall, share=None):
    with share_searches(share):
        lists = neighbor_lists(rows, 4, recall=recall)
    return lists.similarities, lists.indices, lists.recall


def shared_clusters():
    """Return clusters of k-means whose first searches all ranks share, and the number of these searches."""
    rows = shared_rows() if rank() == 0 else None
    lloyd = "udmlss.clustering.kmeans.lloyd"
    with patch(f"{lloyd}._ALONE", 0), patch(f"{lloyd}._FEWEST_CENTERS", 0):
        return run_with_helpers(lambda share: clusters_of(rows, share))


def clusters_of(rows, share=None):
    counted = []

    def count(*arguments):
        counted.append(arguments)
        share(*arguments)

    with share_searches(share and count):
        return k_means(rows, 12, start=rows[:12]), len(counted)


def shared_rows():
    return torch.randn(600, 8, generator=torch.Generator().manual_seed(2))


def attempt(function):
    """Return the type and text of the function's error, and the seconds until it was raised."""
    start = time.monotonic()
    try:
        function()
    except BaseException as error:  # noqa: BLE001 (interrupts are tested, too)
        return type(error), str(error), time.monotonic() - start
    return None, "", time.monotonic() - start


def fail(error):
    raise error


def raise_on_ranks(errors):
    """Raise in a synchronized block the error of this rank, if it has one."""
    with SynchronizedErrors():
        if rank() in errors:
            raise errors[rank()]


def error_with_note():
    error = OSError("truncated")
    error.add_note("while loading item 42 of `images`")
    return error


def stop_requested_by(*ranks):
    with SynchronizedErrors() as block:
        if rank() in ranks:
            block.ask_stop()
    return block.stop


def iterate(failing_rank):
    """Return the items of an iterable that fails at its third item on one rank, and the error."""
    items = []

    def source():
        yield from (0, 1)
        if rank() == failing_rank:
            raise OSError("no third item")
        yield 2

    found = attempt(lambda: items.extend(synchronized(source())))
    return items, found[:2]


def results():
    last = world_size() - 1
    number = float(rank())
    out = torch.empty(7, 2)
    gather_shards(rows_of(shard(7)), 7, out=out)
    return {
        "ranks": (rank(), world_size(), is_rank_zero()),
        "gathered": gather(torch.full((2, 3), rank())),
        "gathered bfloat16": gather(torch.full((1,), number, dtype=torch.bfloat16, requires_grad=True)).detach(),
        "gathered columns": gather(torch.arange(6.0).view(2, 3).t()),
        "gradient of different losses": gradient_of_different_losses(),
        "loss inside": {name: gradients_with_loss_inside(name) for name in LOSSES},
        "loss outside": {name: gradients_with_loss_outside(name) for name in LOSSES},
        "data parallel": gradients_of_data_parallel(),
        "shards": {n: list(shard(n)) for n in SIZES},
        "gathered shards": gathered_shards(2**26),
        "gathered shards in steps": gathered_shards(1),
        "gathered on rank 0": gather_shards(rows_of(shard(7)), 7, only_rank_zero=True),
        "gathered into out": out,
        "objects": all_gather_objects({"rank": rank()}),
        "pseudo-labels": run_on_rank_zero(pseudo_labels),
        "rank of run_on_rank_zero": run_on_rank_zero(rank),
        "means": mean_over_ranks(torch.tensor([number, 1.0, torch.nan if rank() == last else 0.0])),
        "work": run_with_helpers(share_twice),
        "times sent": run_with_helpers(times_sent_when_shared_three_times),
        "shared clusters": shared_clusters(),
        "shared lists": {recall: shared_lists(recall) for recall in RECALLS},
        "work fails": attempt(lambda: run_with_helpers(lambda share: share_twice(share, fail_on_rank_1))),
        "unpicklable work": attempt(lambda: run_with_helpers(lambda share: share_twice(share, lambda *_: iter(())))),
        "function with helpers fails": attempt(lambda: run_with_helpers(lambda _: fail(OSError("disk full")))),
        "rank 0 fails": attempt(lambda: run_on_rank_zero(lambda: fail(OSError("disk full")))),
        "unpicklable": attempt(lambda: run_on_rank_zero(lambda: lambda: 0)),
        "no error": attempt(lambda: raise_on_ranks({})),
        **{name: attempt(lambda error=error: raise_on_ranks({1: error})) for name, error in ERRORS.items()},
        "error with note": attempt(lambda: raise_on_ranks({1: error_with_note()})),
        "two errors": attempt(lambda: raise_on_ranks({0: ValueError("first"), last: KeyError("last")})),
        "interrupt and error": attempt(lambda: raise_on_ranks({0: KeyboardInterrupt(), last: ValueError("last")})),
        "stop": [stop_requested_by(*ranks) for ranks in ((), (0,), (last,), (0, last), ())],
        "iterations": [iterate(failing_rank=None), iterate(failing_rank=1)],
        "gathered at the end": gather(torch.tensor([rank()])),
    }


def main(folder, ports):
    for n_ranks, port in zip(WORLD_SIZES, ports, strict=True):
        if int(os.environ["RANK"]) >= n_ranks:
            continue
        os.environ |= {"WORLD_SIZE": str(n_ranks), "MASTER_PORT": port}
        with process_group(timeout=timedelta(seconds=TIMEOUT)) as device:
            torch.save(results() | {"device": device}, folder / f"{rank()}-of-{n_ranks}.pt")
            if n_ranks == WORLD_SIZES[-1]:
                raise_on_ranks({1: ValueError("not caught")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
