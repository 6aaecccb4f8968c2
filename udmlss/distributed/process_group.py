"""The processes that `torchrun` started: how many there are, and which one this is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from udmlss._checks import value_error


def world_size() -> int:
    """Return the number of processes: 1 where torch.distributed was not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in 0..world_size-1."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def is_rank_zero() -> bool:
    """Return whether this is the process that writes files and shows progress."""
    return rank() == 0


@contextmanager
def process_group(*, timeout: timedelta = timedelta(hours=2)) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started for the `with` block, and yield the device for this one's model.

    Where `RANK` and `WORLD_SIZE` are not in the environment, or a process group is there already, it only says the
    device: this process's GPU, or the CPU. With GPUs, tensors on them travel by NCCL and all else by Gloo.

    Args:
        timeout: How long to wait for another rank before giving up. Default: long, as all others wait while the first
            clusters.

    Raises:
        ValueError: There are more processes on this machine than GPUs.

    Example:
        >>> with process_group() as device:
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


def carried(tensor: Tensor) -> Tensor:
    """Return the tensor where the process group can send it from: a group of NCCL alone sends from GPUs only."""
    devices = distributed.get_backend_config()  # such as "cpu:gloo,cuda:nccl"
    return tensor if f"{tensor.device.type}:" in devices else tensor.cuda()


def _local_rank() -> int:
    found = int(os.environ.get("LOCAL_RANK", "-1"))
    n_gpus = torch.cuda.device_count()
    if not 0 <= found < n_gpus:
        raise value_error(
            f"`LOCAL_RANK` must name one of this machine's {n_gpus} GPUs, counted from 0",
            os.environ.get("LOCAL_RANK", "none"),
            f"Start with torchrun --nproc-per-node={n_gpus}",
        )
    return found


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
