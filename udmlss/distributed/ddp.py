"""Gradients averaged over ranks by DistributedDataParallel."""

from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined] # public, but not in its `__all__`
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from udmlss._torch import device_of
from udmlss.distributed.collectives import gather
from udmlss.distributed.process_group import world_size

# Buffers are broadcast before every embedding pass and need not be in every step. torch 2.15 renames the parameter.
_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
_KEEP_BUFFERS: dict[str, Any] = {_BUFFERS: False}


def data_parallel(module: nn.Module) -> nn.Module:
    """Wrap a module in `DistributedDataParallel`, or return it unchanged if there is one rank.

    The static graph of `DistributedDataParallel` is used: a parameter must take part in every step or in none.
    """
    if world_size() == 1:
        return module
    parallel = DistributedDataParallel(module, static_graph=True, **_KEEP_BUFFERS)
    if device_of(module).type == "cpu":
        parallel.register_comm_hook(None, _average_in_rank_order)
    return parallel


def _average_in_rank_order(_state: object, bucket: GradBucket) -> Future[Tensor]:
    """Average gradients in the order of the ranks, so that their rounding does not depend on the buckets.

    `DistributedDataParallel` assigns gradients to other buckets in the first step than in later ones. With its own sum,
    a resumed run would round differently from an uninterrupted one.
    """
    mean: Future[Tensor] = Future()
    first, *others = gather(bucket.buffer()).chunk(world_size())
    mean.set_result(sum(others, start=first) / world_size())
    return mean
