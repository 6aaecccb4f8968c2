"""What one process has, for all of them."""

import pickle
from collections.abc import Callable
from io import BytesIO
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from udmlss.distributed.joining import carried, is_first, world_size
from udmlss.distributed.same_fate import SameFate

T = TypeVar("T")


def from_first(function: Callable[[], T]) -> T:
    """Run a function on the first rank alone and return its result on every rank.

    Tensors in the result are on the CPU of other ranks, wherever the first has them. Random numbers that the function
    draws from a global state are drawn on the first rank only.

    Args:
        function: Returns what can be pickled.

    Raises:
        RuntimeError: On the other ranks, if it raised on the first, which raises its own error.

    Example:
        >>> from_first(lambda: 2 + 2)
        4
    """
    if world_size() == 1:
        return function()
    with SameFate():
        box = [b""]
        if is_first():
            result = function()
            box = [_packed(result)]
    distributed.broadcast_object_list(box, src=0)
    return result if is_first() else torch.load(BytesIO(box[0]), map_location="cpu", weights_only=False)


def follow_first(module: nn.Module) -> None:
    """Give every rank the first one's buffers of a module, such as the statistics of batch norm."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def every_rank(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks; they are pickled, so let them be small.

    Example:
        >>> every_rank(4)
        [4]
    """
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return cast("list[T]", values)


def mean_over_ranks(values: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Return the mean over ranks of each value, without gradient; one that is not finite stays so."""
    if world_size() == 1:
        return values.detach()
    total = carried(values.detach().clone())
    distributed.all_reduce(total)
    return (total / world_size()).to(values.device)


def _packed(value: object) -> bytes:
    file = BytesIO()
    torch.save(value, file, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return file.getvalue()
