"""Work of rank 0 in which the other ranks take part."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from udmlss._chunks import Share, Store, Work, row_slices
from udmlss._row_store import allocate_rows
from udmlss.distributed.collectives import all_gather_objects, run_on_rank_zero, serialized
from udmlss.distributed.process_group import is_rank_zero, rank, to_backend, world_size
from udmlss.distributed.sync import SynchronizedErrors

T = TypeVar("T")


@dataclass(frozen=True)
class _Task:
    """What the other ranks need to know of shared work: the pickled work, and the matrix unless they have it."""

    work: bytes
    shape: torch.Size
    kind: str  # of device
    sends_matrix: bool


def run_with_helpers(function: Callable[[Share | None], T], folder: Path | None = None) -> T:
    """Run a function on rank 0 with the help of all ranks, and return its result on every rank.

    The function receives `share(matrix, work, store)`, which sends a float32 matrix to all ranks. Each rank iterates
    over `work(matrix, part, n_parts)` for its own part, and rank 0 calls `store(*found)` for the results of all ranks.
    A matrix that is shared several times in a row is sent once, so that it must not change in between. In a single
    process the function receives None.

    Args:
        function: The function. The work that it shares must be an object that `torch.save` can write, and its tensors
            must be on the device of the matrix.
        folder: Folder of the unnamed files that hold the matrix on the other ranks. None uses their GPU or memory.

    Raises:
        RuntimeError: The function or the work raised an error on another rank, which raises the original error.

    Example:
        >>> run_with_helpers(lambda share: 4)
        4
    """
    if world_size() == 1:
        return function(None)
    results, errors = list[T](), list[BaseException]()
    if is_rank_zero():
        try:
            results.append(function(_Share()))
        except BaseException as error:  # noqa: BLE001 (raised below, after the other ranks were released)
            errors.append(error)
        _broadcast_task(None)
    else:
        no_matrix = matrix = torch.empty(0, 0)
        while (task := _broadcast_task(None)) is not None:
            try:
                if task.sends_matrix:
                    matrix = no_matrix  # which releases the memory of the former one
                    matrix = _receive(task, folder)
                _take_part(task, matrix)
            except BaseException as error:  # noqa: BLE001 (as above)
                errors.append(error)

    def outcome() -> T:
        if errors:
            raise errors[0]
        return results[0]

    try:
        return run_on_rank_zero(outcome)
    except RuntimeError as error:
        raise errors[0] if errors else error from None


class _Share:
    """Shares work on rank 0 while the others are in `_receive` and `_take_part`."""

    def __init__(self) -> None:
        self._sent: Tensor | None = None

    def __call__(self, matrix: Float[Tensor, "n d"], work: Work, store: Store) -> None:
        sends_matrix = matrix is not self._sent
        _broadcast_task(_Task(serialized(work), matrix.shape, matrix.device.type, sends_matrix))
        if sends_matrix:
            _send(matrix)
            self._sent = matrix
        with SynchronizedErrors():
            for found in work(matrix, 0, world_size()):
                store(*found)
        for source, layout in enumerate(all_gather_objects(list[tuple[torch.Size, torch.dtype]]())):
            received = [to_backend(torch.empty(shape, dtype=dtype, device=matrix.device)) for shape, dtype in layout]
            for each in received:
                distributed.recv(each, src=source)
            if received:
                store(*(each.to(matrix.device) for each in received))


def _send(matrix: Float[Tensor, "n d"]) -> None:
    with SynchronizedErrors():
        pass  # the other ranks allocate the matrix
    for rows in row_slices(matrix):
        distributed.broadcast(to_backend(matrix[rows].contiguous()), src=0)


def _receive(task: _Task, folder: Path | None) -> Float[Tensor, "n d"]:
    n, d = task.shape
    with SynchronizedErrors():
        matrix = allocate_rows(n, d, folder, torch.device(task.kind))
    for rows in row_slices(matrix):
        part = to_backend(torch.empty_like(matrix[rows], device=task.kind))
        distributed.broadcast(part, src=0)
        matrix[rows] = part
    return matrix


def _take_part(task: _Task, matrix: Float[Tensor, "n d"]) -> None:
    with SynchronizedErrors():
        work = torch.load(BytesIO(task.work), map_location=matrix.device, weights_only=False)
        found = [torch.cat(each) for each in zip(*work(matrix, rank(), world_size()), strict=True)]
    all_gather_objects([(each.shape, each.dtype) for each in found])
    for each in found:
        distributed.send(to_backend(each.to(task.kind).contiguous()), dst=0)  # this rank's GPU may have less memory


def _broadcast_task(task: _Task | None) -> _Task | None:
    box = [task]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
