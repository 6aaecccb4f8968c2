"""What decides the result of a run: its parts, settings and images, which checkpoints and ranks compare."""

from udmlss.training.identity.description import (
    check_identity,
    check_ranks,
    describe_loop,
    describe_rank,
    differences,
    identify,
    optimizer_settings,
)

__all__ = [
    "check_identity",
    "check_ranks",
    "describe_loop",
    "describe_rank",
    "differences",
    "identify",
    "optimizer_settings",
]
