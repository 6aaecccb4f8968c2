"""Devices, memory formats, modes, precision and random numbers of torch."""

# ruff: noqa: NPY002 (transforms of other libraries sample from the global generator of NumPy)

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from udmlss.types import Precision


@contextmanager
def seeded_generators(*key: int) -> Iterator[None]:
    """Seed the CPU generators of torch, NumPy and Python for the `with` block, and restore their states after it.

    Args:
        key: Non-negative integers that identify the block, such as a seed, a round and a batch. Different keys give
            different random numbers.

    Example:
        >>> with seeded_generators(0, 7):
        ...     first = torch.rand(3)
        >>> with seeded_generators(0, 7):
        ...     torch.equal(torch.rand(3), first)
        True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # The length of the key is part of the seed because SeedSequence pads with zeros: (1,) would equal (1, 0).
    words = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint64)
    first_seed, second_seed = map(int, words)
    random.seed(first_seed)
    np.random.seed(first_seed % 2**32)
    torch.default_generator.manual_seed(second_seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter, or the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def is_channels_last(model: nn.Module) -> bool:
    """Return whether the weights of the model's convolutions are in the channels-last memory format."""
    return any(
        parameter.ndim == 4  # noqa: PLR2004
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()  # 1x1 and depthwise kernels are contiguous in both formats
        for parameter in model.parameters()
    )


def to_device(images: Float[Tensor, "b c h w"], model: nn.Module) -> Float[Tensor, "b c h w"]:
    """Move images to the model's device, in the memory format of its convolutions."""
    memory_format = torch.channels_last if is_channels_last(model) else torch.preserve_format
    return images.to(device_of(model), non_blocking=True, memory_format=memory_format)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context manager in which forward passes run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def restore_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of every submodule after the `with` block."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode for the `with` block."""
    with restore_modes(module):
        module.eval()
        yield


@contextmanager
def fork_torch_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and the device for the `with` block, and restore their states after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
