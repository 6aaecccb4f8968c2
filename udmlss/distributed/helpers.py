"""Work of rank 0 in which the other ranks take part."""

from collections.abc import Callable
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
_Task = tuple[bytes, torch.Size, str]  # the work, and the shape and the kind of device of the matrix


def run_with_helpers(function: Callable[[Share | None], T], folder: Path | None = None) -> T:
    """Run a function on rank 0 with the help of all ranks, and return its result on every rank.

    The function receives `share(matrix, work, store)`, which sends a float32 matrix to all ranks. Each rank iterates
    over `work(matrix, part, n_parts)` for its own part, and rank 0 calls `store(*found)` for the results of all ranks.
    In a single process the function receives None.

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
            results.append(function(_share))
        except BaseException as error:  # noqa: BLE001 (raised below, after the other ranks were released)
            errors.append(error)
        _broadcast_task(None)
    else:
        while (task := _broadcast_task(None)) is not None:
            try:
                _take_part(task, folder)
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


def _share(matrix: Float[Tensor, "n d"], work: Work, store: Store) -> None:
    """Share work on rank 0 while the others are in `_take_part`."""
    _broadcast_task((serialized(work), matrix.shape, matrix.device.type))
    with SynchronizedErrors():
        pass  # the other ranks allocate the matrix
    for rows in row_slices(matrix):
        distributed.broadcast(to_backend(matrix[rows].contiguous()), src=0)
    with SynchronizedErrors():
        for found in work(matrix, 0, world_size()):
            store(*found)
    for source, layout in enumerate(all_gather_objects(list[tuple[torch.Size, torch.dtype]]())):
        received = [to_backend(torch.empty(shape, dtype=dtype, device=matrix.device)) for shape, dtype in layout]
        for each in received:
            distributed.recv(each, src=source)
        if received:
            store(*(each.to(matrix.device) for each in received))


def _take_part(task: _Task, folder: Path | None) -> None:
    saved, (n, d), kind = task
    with SynchronizedErrors():
        matrix = allocate_rows(n, d, folder, torch.device(kind))
    for rows in row_slices(matrix):
        part = to_backend(torch.empty_like(matrix[rows], device=kind))
        distributed.broadcast(part, src=0)
        matrix[rows] = part
    with SynchronizedErrors():
        work = torch.load(BytesIO(saved), map_location=matrix.device, weights_only=False)
        found = [torch.cat(each) for each in zip(*work(matrix, rank(), world_size()), strict=True)]
    all_gather_objects([(each.shape, each.dtype) for each in found])
    for each in found:
        distributed.send(to_backend(each.to(kind).contiguous()), dst=0)  # this rank may have less memory on its GPU


def _broadcast_task(task: _Task | None) -> _Task | None:
    box = [task]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
