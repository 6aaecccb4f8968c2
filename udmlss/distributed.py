"""Several processes that work as one: gather, broadcast, one fate for all. Alone, none of it does anything."""

import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from types import TracebackType
from typing import TypeVar, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed, nn

from udmlss._checks import check_at_least, refusal

T = TypeVar("T")

_END = object()
_STOP, _INTERRUPTED, _FAILED = 1, 2, 3  # what a rank tells the others; 0 is well, and the highest counts
_AT_ONCE = 2**24  # numbers that `gather_shards` receives at once: 64 MB in float32


def world_size() -> int:
    """Return the number of processes: 1 where torch.distributed was not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in 0..world_size-1."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is the process that writes files and shows progress."""
    return rank() == 0


@contextmanager
def joined(*, timeout: timedelta = timedelta(hours=2)) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started for the `with` block, and yield the device for this one's model.

    Where `RANK` and `WORLD_SIZE` are not in the environment, or a process group is there already, it only says the
    device: this process's GPU, or the CPU. With GPUs, tensors on them travel by NCCL and all else by Gloo.

    Args:
        timeout: How long to wait for another rank before giving up. Default: long, as all others wait while the first
            clusters.

    Raises:
        ValueError: There are more processes on this machine than GPUs.

    Example:
        >>> with joined() as device:
        ...     model = nn.Linear(2, 2).to(device)
    """
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if not started or not distributed.is_available() or distributed.is_initialized():
        yield _device()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank())
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=timeout)
    try:
        yield _device()
    finally:
        distributed.destroy_process_group()


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
    total = _carried(values.detach().clone())
    distributed.all_reduce(total)
    return (total / world_size()).to(values.device)


class SameFate:
    """Work of one rank that may fail, in a `with` block that ends alike on every rank, so that none waits for ever.

    At its end the ranks exchange one number. If a rank's block raised an error, that rank goes on raising it and every
    other raises a RuntimeError that names the rank and the error. A KeyboardInterrupt in one rank is one in all of
    them, since some have left their block half done. Nothing that waits for other ranks may stand in the block.

    Attributes:
        stop: After the block, whether any rank asked to stop: the same on every rank.

    Example:
        >>> with SameFate() as fate:
        ...     fate.ask_stop()
        >>> fate.stop
        True
    """

    def __init__(self) -> None:
        self.stop = False
        self._asked = False

    def ask_stop(self) -> None:
        """Ask all ranks to stop together after this block, as when this process is told to end (SIGTERM)."""
        self._asked = True

    def __enter__(self) -> "SameFate":  # noqa: PYI034 (the shape checker of the tests knows no Self)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        worst = _worst(self._status(error))
        self.stop = worst == _STOP
        if worst >= _FAILED and world_size() > 1:
            failed = world_size() - 1 - (worst - _FAILED)
            told = ["" if error is None else "".join(traceback.format_exception_only(error)).strip()]
            distributed.broadcast_object_list(told, src=failed)
            if error is None:
                message = f"rank {failed} failed with {told[0]}"
                raise RuntimeError(message)
        if worst == _INTERRUPTED and error is None:
            raise KeyboardInterrupt

    def _status(self, error: BaseException | None) -> int:
        if isinstance(error, KeyboardInterrupt):
            return _INTERRUPTED
        if error is not None:
            return _FAILED + world_size() - 1 - rank()  # so that the lowest rank that failed tells
        return _STOP if self._asked else 0


def together(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of each rank's own iterable, which are as many on each: an error of one ends all.

    Example:
        >>> list(together([1, 2]))
        [1, 2]
    """
    iterator = iter(items)
    while True:
        with SameFate():
            item = next(iterator, _END)
        if item is _END:
            return
        yield cast("T", item)


class _Gather(torch.autograd.Function):
    """Written out because `torch.distributed.nn.functional.all_gather` has given wrong gradients (pytorch#120386)."""

    @staticmethod
    def forward(_context: object, rows: Tensor) -> Tensor:
        return _gathered(rows).flatten(0, 1)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        total = _carried(gradient.clone(memory_format=torch.contiguous_format))
        distributed.all_reduce(total)
        return total.chunk(world_size())[rank()].to(gradient.device)


def _gathered(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "w b ..."]:
    sent = _carried(rows.contiguous())
    parts = sent.new_empty(world_size(), *sent.shape)
    distributed.all_gather(list(parts), sent)
    return parts.to(rows.device)


def _shard_of(other: int, n: int) -> range:
    check_at_least("n", n, 1)
    size = -(-n // world_size())
    begin = min(other * size, n - size)
    return range(begin, begin + size)


def _worst(status: int) -> int:
    if world_size() == 1:
        return status
    told = _carried(torch.tensor(status))
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return int(told)


def _packed(value: object) -> bytes:
    file = BytesIO()
    torch.save(value, file, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return file.getvalue()


def _carried(tensor: Tensor) -> Tensor:
    """Return the tensor where the process group can send it from: a group of NCCL alone sends from GPUs only."""
    devices = distributed.get_backend_config()  # such as "cpu:gloo,cuda:nccl"
    return tensor if f"{tensor.device.type}:" in devices else tensor.cuda()


def _local_rank() -> int:
    found = int(os.environ.get("LOCAL_RANK", "-1"))
    n_gpus = torch.cuda.device_count()
    if not 0 <= found < n_gpus:
        raise refusal(
            f"`LOCAL_RANK` must name one of this machine's {n_gpus} GPUs, counted from 0",
            os.environ.get("LOCAL_RANK", "none"),
            f"Start with torchrun --nproc-per-node={n_gpus}",
        )
    return found


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
