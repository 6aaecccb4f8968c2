"""Rows of all processes in one tensor."""

import pickle
from collections.abc import Callable
from io import BytesIO
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed, nn

from udmlss._checks import check_integer, value_error
from udmlss.distributed.process_group import carried, is_rank_zero, rank, world_size
from udmlss.distributed.sync import SynchronizedErrors

_AT_ONCE = 2**24  # numbers that `gather_shards` receives at once: 64 MB in float32
T = TypeVar("T")


def gather(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "_ ..."]:
    r"""Return the rows of all ranks, in the order of the ranks, with a gradient if they are of floating point.

    The gradient of rank $r$'s rows is the sum of what all ranks send back,

    $$\frac{\partial}{\partial x_r} = \sum_q \frac{\partial L_q}{\partial x_r}$$

    so if every rank takes the same loss of all rows and `DistributedDataParallel` then averages the gradients of the
    parameters, these are the gradients of one process that has all rows.

    Args:
        rows: As many on each rank, of one shape and type; embeddings or labels.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def shard(n: int) -> range:
    """Return which of n items this rank takes: as many on each rank, at least one, in a row for fast reading.

    Where n is not divisible the last ranks take some items that others take, too.

    Args:
        n: Number of items.

    Raises:
        ValueError: n is below 1.

    Example:
        >>> shard(7)
        range(0, 7)
    """
    return _shard_of(rank(), n)


def gather_shards(
    rows: Shaped[Tensor, "s ..."], n: int, *, only_rank_zero: bool = False, out: Shaped[Tensor, "n ..."] | None = None
) -> Shaped[Tensor, "_ ..."]:
    """Return the rows of all n items in order, each once, from ranks that hold those of their `shard(n)`.

    Without gradient. Rows come in pieces, so that little memory is taken beside the result.

    Args:
        rows: One row for each item of this rank's `shard(n)`, on any device.
        n: Number of items.
        only_rank_zero: Whether ranks other than the first get no rows, to save their memory.
        out: Where to put them on a rank that gets them, such as a tensor mapped from a file. Default: a new tensor.

    Raises:
        ValueError: There are more or fewer rows than the shard has items.

    Example:
        >>> gather_shards(torch.arange(7), 7)
        tensor([0, 1, 2, 3, 4, 5, 6])
    """
    held = shard(n)
    if len(rows) != len(held):
        raise value_error(f"`rows` must be those of `shard({n})`, {len(held)} of them", len(rows), "Take that shard")
    if world_size() == 1:
        return rows if out is None else out.copy_(rows)
    n_kept = 0 if only_rank_zero and not is_rank_zero() else n
    whole = rows.new_empty(n_kept, *rows.shape[1:]) if out is None else out
    rows_at_once = max(1, _AT_ONCE // (world_size() * max(1, rows[0].numel())))
    for done in range(0, len(rows), rows_at_once):
        parts = _gathered(rows[done : done + rows_at_once].detach())
        for other, part in enumerate(parts):
            begin = _shard_of(other, n).start + done
            if n_kept:
                whole[begin : begin + len(part)] = part
    return whole


class _Gather(torch.autograd.Function):
    """Written out because `torch.distributed.nn.functional.all_gather` has given wrong gradients (pytorch#120386)."""

    @staticmethod
    def forward(_context: object, rows: Tensor) -> Tensor:
        return _gathered(rows).flatten(0, 1)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        total = carried(gradient.clone(memory_format=torch.contiguous_format))
        distributed.all_reduce(total)
        return total.chunk(world_size())[rank()].to(gradient.device)


def _gathered(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "w b ..."]:
    sent = carried(rows.contiguous())
    parts = sent.new_empty(world_size(), *sent.shape)
    distributed.all_gather(list(parts), sent)
    return parts.to(rows.device)


def _shard_of(other: int, n: int) -> range:
    check_integer("n", n, 1)
    size = -(-n // world_size())
    begin = min(other * size, n - size)
    return range(begin, begin + size)


def run_on_rank_zero(function: Callable[[], T]) -> T:
    """Run a function on the first rank alone and return its result on every rank.

    Tensors in the result are on the CPU of other ranks, wherever the first has them. Random numbers that the function
    draws from a global state are drawn on the first rank only.

    Args:
        function: Returns what can be pickled.

    Raises:
        RuntimeError: On the other ranks, if it raised on the first, which raises its own error.

    Example:
        >>> run_on_rank_zero(lambda: 2 + 2)
        4
    """
    if world_size() == 1:
        return function()
    with SynchronizedErrors():
        box = [b""]
        if is_rank_zero():
            result = function()
            box = [_packed(result)]
    distributed.broadcast_object_list(box, src=0)
    return result if is_rank_zero() else torch.load(BytesIO(box[0]), map_location="cpu", weights_only=False)


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the first one's buffers of a module, such as the statistics of batch norm."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def all_gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks; they are pickled, so let them be small.

    Example:
        >>> all_gather_objects(4)
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
