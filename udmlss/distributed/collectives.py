"""Collective operations on tensors and objects of all ranks."""

import pickle
from collections.abc import Callable
from io import BytesIO
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed, nn

from udmlss._checks import check_integer, value_error
from udmlss.distributed.process_group import is_rank_zero, rank, to_backend, world_size
from udmlss.distributed.sync import SynchronizedErrors

_NUMBERS_AT_ONCE = 2**24  # in one step of `gather_shards`: 64 MiB of float32
T = TypeVar("T")


def gather(rows: Shaped[Tensor, "b ..."], *, equal_losses: bool = False) -> Shaped[Tensor, "_ ..."]:
    r"""Concatenate the rows of all ranks, in the order of the ranks, with gradient.

    The gradient of the rows $x_r$ of rank $r$ is the sum over the losses $L_q$ of all ranks,

    $$\sum_q \frac{\partial L_q}{\partial x_r}$$

    If every rank computes the same loss from all rows, and `DistributedDataParallel` averages the gradients of the
    parameters, these gradients equal those of a single process that has all rows.

    Args:
        rows: Rows (b, ...), such as embeddings or labels, of the same shape and data type on each rank.
        equal_losses: Whether the losses of all ranks are the same function of all rows. The sum is then that of this
            rank's loss times the number of ranks, which needs no communication.

    Example:
        >>> gather(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = (_GatherForEqualLosses if equal_losses else _Gather).apply(rows)
    return gathered


def shard(n: int) -> range:
    """Return the indices of the items, of n in all, that this rank processes.

    Each rank gets a contiguous range of the same length. If n is not divisible by the number of ranks, some items are
    in the ranges of two or more ranks.

    Args:
        n: Number of items.

    Raises:
        ValueError: n is below 1.

    Example:
        >>> shard(7)
        range(0, 7)
    """
    check_integer("n", n, 1)
    return _shard_of(rank(), n)


def gather_shards(
    rows: Shaped[Tensor, "s ..."], n: int, *, only_rank_zero: bool = False, out: Shaped[Tensor, "n ..."] | None = None
) -> Shaped[Tensor, "_ ..."]:
    """Gather one row for each of n items, in order and without gradient, from ranks that processed their `shard(n)`.

    The rows are gathered in several steps, so that the memory used in addition to the result is small.

    Args:
        rows: One row for each item of this rank's `shard(n)`, on any device.
        n: Number of items.
        only_rank_zero: Whether ranks other than 0 get no rows, to save their memory.
        out: Tensor (n, ...) that receives the rows on a rank that gets them, such as one that is mapped from a file.
            None allocates a tensor.

    Raises:
        ValueError: The number of rows is not that of the shard.

    Example:
        >>> gather_shards(torch.arange(7), 7)
        tensor([0, 1, 2, 3, 4, 5, 6])
    """
    own = shard(n)
    if len(rows) != len(own):
        raise value_error(f"`rows` must be the {len(own)} rows of `shard({n})`", len(rows), "Pass one row per item")
    if world_size() == 1:
        return rows if out is None else out.copy_(rows)
    gets_rows = is_rank_zero() or not only_rank_zero
    gathered = rows.new_empty(n if gets_rows else 0, *rows.shape[1:]) if out is None else out
    rows_at_once = max(1, _NUMBERS_AT_ONCE // (world_size() * max(1, rows[0].numel())))
    for start in range(0, len(rows), rows_at_once):
        parts = _all_gather(rows[start : start + rows_at_once].detach())
        for source, part in enumerate(parts):
            first = _shard_of(source, n).start + start
            if gets_rows:
                gathered[first : first + len(part)] = part
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather with gradient; that of `torch.distributed.nn.functional` has been wrong (pytorch#120386)."""

    @staticmethod
    def forward(_context: object, rows: Tensor) -> Tensor:
        return _all_gather(rows).flatten(0, 1)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        total = to_backend(gradient.clone(memory_format=torch.contiguous_format))
        distributed.all_reduce(total)
        return total.chunk(world_size())[rank()].to(gradient.device)


class _GatherForEqualLosses(_Gather):
    """All-gather whose gradient needs no communication, because the other ranks would send the same gradient."""

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        return world_size() * gradient.chunk(world_size())[rank()]


def _all_gather(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "w b ..."]:
    sent = to_backend(rows.contiguous())
    parts = sent.new_empty(world_size(), *sent.shape)
    distributed.all_gather(list(parts), sent)
    return parts.to(rows.device)


def _shard_of(other_rank: int, n: int) -> range:
    size = -(-n // world_size())
    start = min(other_rank * size, n - size)
    return range(start, start + size)


def run_on_rank_zero(function: Callable[[], T]) -> T:
    """Run a function on rank 0 only, and return its result on every rank.

    Tensors in the result are on the CPU of the other ranks. Random numbers that the function samples from a global
    generator change the state of that generator on rank 0 only.

    Args:
        function: A function without arguments whose result can be pickled.

    Raises:
        RuntimeError: The function raised an error on rank 0. Rank 0 itself raises the original error.

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
            box = [serialized(result)]
    distributed.broadcast_object_list(box, src=0)
    return result if is_rank_zero() else torch.load(BytesIO(box[0]), map_location="cpu", weights_only=False)


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers of a module from rank 0 to all ranks, such as the running statistics of batch normalization."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def all_gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks. Values are pickled and should be small.

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
    """Return the mean of each value over all ranks, without gradient; NaN or infinity on a rank is preserved.

    Example:
        >>> mean_over_ranks(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if world_size() == 1:
        return values.detach()
    total = to_backend(values.detach().clone())
    distributed.all_reduce(total)
    return (total / world_size()).to(values.device)


def serialized(value: object) -> bytes:
    """Return what `torch.save` writes for an object."""
    file = BytesIO()
    torch.save(value, file, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return file.getvalue()
