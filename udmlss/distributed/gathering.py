"""Rows of all processes in one tensor."""

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

from udmlss._checks import check_at_least, refusal
from udmlss.distributed.joining import carried, is_first, rank, world_size

_AT_ONCE = 2**24  # numbers that `gather_shards` receives at once: 64 MB in float32


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
    rows: Shaped[Tensor, "s ..."], n: int, *, only_first: bool = False, out: Shaped[Tensor, "n ..."] | None = None
) -> Shaped[Tensor, "_ ..."]:
    """Return the rows of all n items in order, each once, from ranks that hold those of their `shard(n)`.

    Without gradient. Rows come in pieces, so that little memory is taken beside the result.

    Args:
        rows: One row for each item of this rank's `shard(n)`, on any device.
        n: Number of items.
        only_first: Whether ranks other than the first get no rows, to save their memory.
        out: Where to put them on a rank that gets them, such as a tensor mapped from a file. Default: a new tensor.

    Raises:
        ValueError: There are more or fewer rows than the shard has items.

    Example:
        >>> gather_shards(torch.arange(7), 7)
        tensor([0, 1, 2, 3, 4, 5, 6])
    """
    held = shard(n)
    if len(rows) != len(held):
        raise refusal(f"`rows` must be those of `shard({n})`, {len(held)} of them", len(rows), "Take that shard")
    if world_size() == 1:
        return rows if out is None else out.copy_(rows)
    n_kept = 0 if only_first and not is_first() else n
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
    check_at_least("n", n, 1)
    size = -(-n // world_size())
    begin = min(other * size, n - size)
    return range(begin, begin + size)
