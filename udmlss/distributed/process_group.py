"""The process group of `torchrun`: its size, the rank of this process and its device."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from udmlss._checks import value_error

_SECONDS_TO_RELEASE = 0.1


def world_size() -> int:
    """Return the number of processes, or 1 if torch.distributed is not initialized."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process in 0..world_size-1, or 0 if torch.distributed is not initialized."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def is_rank_zero() -> bool:
    """Return whether this process has rank 0, which writes files and shows progress."""
    return rank() == 0


@contextmanager
def process_group(*, timeout: timedelta = timedelta(hours=2)) -> Iterator[torch.device]:
    """Join the process group of `torchrun` for the `with` block, and yield the device of this process.

    The device is the GPU of the local rank, or the CPU without GPUs. With GPUs, their tensors are sent by NCCL and
    tensors on the CPU by Gloo. No process group is created if the environment variables `RANK` and `WORLD_SIZE` are
    not set, or if one exists already; the device is then the current one of `torch.cuda`.

    Args:
        timeout: Time to wait for another rank in a collective operation. The default is long, because all other ranks
            wait while rank 0 clusters.

    Raises:
        ValueError: There are more processes on this machine than GPUs.

    Example:
        >>> with process_group() as device:
        ...     model = nn.Linear(2, 2).to(device)
    """
    has_launcher = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if not has_launcher or not distributed.is_available() or distributed.is_initialized():
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
        # A thread of Gloo that still holds tensors of the last operation aborts the process if Python exits before it.
        time.sleep(_SECONDS_TO_RELEASE)


def to_backend(tensor: Tensor) -> Tensor:
    """Move a tensor to a device from which the process group can send it: with NCCL alone, to the GPU."""
    devices = distributed.get_backend_config()  # such as "cpu:gloo,cuda:nccl"
    return tensor if f"{tensor.device.type}:" in devices else tensor.cuda()


def _local_rank() -> int:
    local_rank = int(os.environ.get("LOCAL_RANK", "-1"))
    n_gpus = torch.cuda.device_count()
    if not 0 <= local_rank < n_gpus:
        raise value_error(
            f"`LOCAL_RANK` must be the number of one of this machine's {n_gpus} GPUs, counted from 0",
            os.environ.get("LOCAL_RANK", "none"),
            f"Start with torchrun --nproc-per-node={n_gpus}",
        )
    return local_rank


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
