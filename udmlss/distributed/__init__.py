"""Several processes that work as one: gather, broadcast, one fate for all. Alone, none of it does anything."""

from udmlss.distributed.gathering import gather, gather_shards, shard
from udmlss.distributed.joining import is_first, joined, rank, world_size
from udmlss.distributed.same_fate import SameFate, together
from udmlss.distributed.sharing import every_rank, follow_first, from_first, mean_over_ranks

__all__ = [
    "SameFate",
    "every_rank",
    "follow_first",
    "from_first",
    "gather",
    "gather_shards",
    "is_first",
    "joined",
    "mean_over_ranks",
    "rank",
    "shard",
    "together",
    "world_size",
]
