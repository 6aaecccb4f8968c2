"""The device, the precision, the number of workers and the memory allocator that suit a machine."""

import os
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any, TypeVar

import torch
from torch import nn

from udmlss._checks import as_device, check_choice, check_integer
from udmlss.cli.messages import count
from udmlss.types import PRECISIONS, Precision

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (only its free space is read)
_BATCHES_PER_WORKER = 3  # two that were loaded ahead and one that is being loaded
_BATCH_SIZE = 128
_MAX_WORKERS = 16
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Machine:
    """Where and how a model runs.

    Attributes:
        device: The device.
        precision: "float32", or "bfloat16" or "float16" for mixed precision.
        num_workers: Number of processes that load images.
    """

    device: torch.device
    precision: Precision
    num_workers: int

    @classmethod
    def choose(
        cls, device: str | None, *, image_size: int, precision: Precision | None = None, workers: int | None = None
    ) -> "Machine":
        """Choose the settings that are None: a GPU if there is one, bfloat16 if supported, and a worker per core."""
        found = choose_device(device)
        return cls(found, _choose_precision(precision, found), _choose_workers(workers, image_size))

    @property
    def options(self) -> dict[str, Any]:
        """The options of `embed` and `fit`."""
        return {"precision": self.precision, "num_workers": self.num_workers}

    def place(self, module: _Module) -> _Module:
        """Move a module to the device, and to the memory format in which its convolutions are fastest."""
        module.to(self.device)
        if self.device.type in {"cpu", "cuda"}:
            module.to(memory_format=torch.channels_last)
        return module

    def __str__(self) -> str:
        device = f"the CPU ({count(_count_cores(), 'core')})" if self.device.type == "cpu" else str(self.device)
        return f"{device}, {self.precision}, {count(self.num_workers, 'process')} to load images"


def choose_device(device: str | None) -> torch.device:
    """Return a device; None is the accelerator that PyTorch finds, or else the CPU.

    Raises:
        ValueError: The machine has no such device.
    """
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    return as_device(device)


def check_workers(workers: int | None) -> None:
    """Raise an error unless `workers` is None or a number of processes."""
    if workers is not None:
        check_integer("workers", workers, 0)


def _choose_precision(precision: Precision | None, device: torch.device) -> Precision:
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
        return precision
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def _choose_workers(workers: int | None, image_size: int) -> int:
    """Return a number of processes that load images.

    None is one per core, as far as their batches fit into the shared memory, which is small in many containers. On a
    single core the main process loads the images.
    """
    if workers is not None:
        return int(workers)
    most = min(_count_cores(), _MAX_WORKERS)
    if _SHARED_MEMORY.is_dir():
        bytes_per_worker = _BATCHES_PER_WORKER * _BATCH_SIZE * 3 * image_size**2 * 4
        most = min(most, disk_usage(_SHARED_MEMORY).free // bytes_per_worker)
    return most if most > 1 else 0


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
