"""Errors that are synchronized across ranks."""

import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar, cast

import torch
from torch import distributed

from udmlss.distributed.process_group import rank, to_backend, world_size

T = TypeVar("T")

_END = object()
_STOP, _INTERRUPTED, _FAILED = 1, 2, 3  # status of a rank; 0 means success, and the largest of all ranks decides


class SynchronizedErrors:
    """A `with` block whose errors are raised on every rank, so that no rank waits for one that failed.

    At the end of the block the ranks exchange one number. If the block raised an error on some rank, that rank raises
    it and every other rank raises a RuntimeError that names the rank and its error. A KeyboardInterrupt on one rank is
    raised on all ranks. The block must not contain collective operations.

    Attributes:
        stop: After the block, whether any rank called `ask_stop`. All ranks have the same value.

    Raises:
        RuntimeError: The block raised an error on another rank.

    Example:
        >>> with SynchronizedErrors() as block:
        ...     block.ask_stop()
        >>> block.stop
        True
    """

    def __init__(self) -> None:
        self.stop = False
        self._stop_requested = False

    def ask_stop(self) -> None:
        """Set `stop` on all ranks at the end of this block, for example after this process received SIGTERM."""
        self._stop_requested = True

    def __enter__(self) -> "SynchronizedErrors":  # noqa: PYI034 (the type checker of the tests does not support Self)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        status = _largest(self._status(error))
        self.stop = status == _STOP
        if status >= _FAILED and world_size() > 1:
            failed_rank = world_size() - 1 - (status - _FAILED)
            texts = ["" if error is None else "".join(traceback.format_exception_only(error)).strip()]
            distributed.broadcast_object_list(texts, src=failed_rank)
            if error is None:
                message = f"rank {failed_rank} failed with {texts[0]}"
                raise RuntimeError(message)
        if status == _INTERRUPTED and error is None:
            raise KeyboardInterrupt

    def _status(self, error: BaseException | None) -> int:
        if isinstance(error, KeyboardInterrupt):
            return _INTERRUPTED
        if error is not None:
            return _FAILED + world_size() - 1 - rank()  # The lowest rank that failed has the largest status
        return _STOP if self._stop_requested else 0


def synchronized(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of each rank's own iterable; an error of one iterable is raised on every rank.

    Args:
        items: An iterable with the same number of items on each rank.

    Example:
        >>> list(synchronized([1, 2]))
        [1, 2]
    """
    iterator = iter(items)
    while True:
        with SynchronizedErrors():
            item = next(iterator, _END)
        if item is _END:
            return
        yield cast("T", item)


def _largest(status: int) -> int:
    """Return the largest status of all ranks."""
    if world_size() == 1:
        return status
    largest = to_backend(torch.tensor(status))
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return int(largest)
