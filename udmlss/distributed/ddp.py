"""Gradients averaged over ranks by DistributedDataParallel."""

from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined] # public, but not in its `__all__`
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from udmlss._torch import device_of
from udmlss.distributed import gather, world_size
from udmlss.training.step import Losses

_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
_BUFFERS_STAY: dict[str, Any] = {_SYNC: False}  # before every look is enough; torch 2.15 has a new name for it


def shared(losses: Losses) -> nn.Module:
    """Return the losses, held by `DistributedDataParallel` where there are several ranks."""
    if world_size() == 1:
        return losses
    parallel = DistributedDataParallel(losses, static_graph=True, **_BUFFERS_STAY)
    if device_of(losses).type == "cpu":
        parallel.register_comm_hook(None, _average_in_order)
    return parallel


def _average_in_order(_state: object, bucket: GradBucket) -> Future[Tensor]:
    """Average gradients rank by rank, so that they are rounded alike in whatever bucket they are.

    DistributedDataParallel fills its buckets otherwise in the first step than in later ones; a sum formed otherwise
    is rounded otherwise, and a run that goes on would not be the one that did not break off.
    """
    mean: Future[Tensor] = Future()
    first, *others = gather(bucket.buffer()).chunk(world_size())
    mean.set_result(sum(others, start=first) / world_size())
    return mean
