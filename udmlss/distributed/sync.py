"""Work of several processes that ends alike on all of them, whichever fails."""

import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar, cast

import torch
from torch import distributed

from udmlss.distributed.process_group import carried, rank, world_size

T = TypeVar("T")

_END = object()
_STOP, _INTERRUPTED, _FAILED = 1, 2, 3  # what a rank tells the others; 0 is well, and the highest counts


class SynchronizedErrors:
    """Work of one rank that may fail, in a `with` block that ends alike on every rank, so that none waits for ever.

    At its end the ranks exchange one number. If a rank's block raised an error, that rank goes on raising it and every
    other raises a RuntimeError that names the rank and the error. A KeyboardInterrupt in one rank is one in all of
    them, since some have left their block half done. Nothing that waits for other ranks may stand in the block.

    Attributes:
        stop: After the block, whether any rank asked to stop: the same on every rank.

    Example:
        >>> with SynchronizedErrors() as fate:
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

    def __enter__(self) -> "SynchronizedErrors":  # noqa: PYI034 (the shape checker of the tests knows no Self)
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


def synchronized(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of each rank's own iterable, which are as many on each: an error of one ends all.

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


def _worst(status: int) -> int:
    if world_size() == 1:
        return status
    told = carried(torch.tensor(status))
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return int(told)
