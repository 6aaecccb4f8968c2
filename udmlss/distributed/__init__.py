"""Collective operations and synchronized errors of several processes, which have no effect in a single process."""

from udmlss.distributed.collectives import (
    all_gather_objects,
    broadcast_buffers,
    gather,
    gather_shards,
    mean_over_ranks,
    run_on_rank_zero,
    shard,
)
from udmlss.distributed.ddp import data_parallel
from udmlss.distributed.helpers import run_with_helpers
from udmlss.distributed.process_group import is_rank_zero, process_group, rank, world_size
from udmlss.distributed.sync import SynchronizedErrors, synchronized

__all__ = [
    "SynchronizedErrors",
    "all_gather_objects",
    "broadcast_buffers",
    "data_parallel",
    "gather",
    "gather_shards",
    "is_rank_zero",
    "mean_over_ranks",
    "process_group",
    "rank",
    "run_on_rank_zero",
    "run_with_helpers",
    "shard",
    "synchronized",
    "world_size",
]
