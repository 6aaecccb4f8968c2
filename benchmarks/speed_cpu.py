"""What settings make of a training step on a CPU, each in a process of its own."""

import os
from collections.abc import Callable, Mapping
from statistics import median
from unittest.mock import patch

import torch
from speed_measuring import Row, in_process, seconds
from speed_sizes import Sizes
from torchvision.models import mobilenet_v2

BATCH = 80
KEEPS = {  # what glibc's allocator got from the system once, it keeps for the next step
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


def lines_of_cpu(sizes: Sizes) -> list[Row]:
    """Hold each setting against the one before it."""
    plain, last, kept = [], [], []
    for _ in range(sizes.pairs):
        plain.append(_step(sizes, channels_last=False))
        last.append(_step(sizes, channels_last=True))
        kept.append(_step(sizes, channels_last=True, environment=KEEPS))
    words = " ".join(f"{name}={value}" for name, value in KEEPS.items())
    note = f"MobileNetV2, {BATCH} images of {sizes.pixels} pixels, forward and backward"
    return [
        Row("cpu", "a step with channels last", "the same without", last, plain, note=note),
        Row("cpu", f"with channels last and {words}", "channels last alone", kept, last, note=note),
    ]


def _step(sizes: Sizes, *, channels_last: bool, environment: Mapping[str, str] | None = None) -> float:
    with patch.dict(os.environ, environment or {}):
        found: float = in_process(prepare_step, sizes, channels_last).found
    return found


def prepare_step(sizes: Sizes, channels_last: bool) -> Callable[[], float]:  # noqa: FBT001 (goes to another process)
    """Return what gives the median time of a step."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = mobilenet_v2().to(memory_format=layout)
    images = torch.randn(BATCH, 3, sizes.pixels, sizes.pixels).to(memory_format=layout)

    def step() -> None:
        model(images).square().mean().backward()
        model.zero_grad()

    def run() -> float:
        step()  # the first one finds its kernels and its memory
        return median(seconds(step) for _ in range(sizes.cpu_steps))

    return run
