"""Devices, modes, precision and random numbers of torch."""

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
    """Let torch, numpy and Python draw from a seed of these numbers for the `with` block; their states come back.

    Only generators of the CPU are meant, which is where transforms draw.

    Args:
        key: Numbers from 0 that tell this block from others, such as a seed, a round and a batch.

    Example:
        >>> with seeded_generators(0, 7):
        ...     first = torch.rand(3)
        >>> with seeded_generators(0, 7):
        ...     torch.equal(torch.rand(3), first)
        True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = np.random.SeedSequence((len(key), *key))  # which pads with zeros, so that (1,) would be (1, 0)
    one, other = (int(word) for word in seed.generate_state(2, np.uint64))
    random.seed(one)
    np.random.seed(one % 2**32)
    torch.default_generator.manual_seed(other)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are, the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def to_device(
    batch: Float[Tensor, "b c h w"], device: torch.device, *, channels_last: bool
) -> Float[Tensor, "b c h w"]:
    """Move a batch to the device, in the memory format asked for."""
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    return batch.to(device, non_blocking=True, memory_format=memory_format)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which forward passes run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def restore_modes(*modules: nn.Module) -> Iterator[None]:
    """Put every part back into the mode, training or evaluation, it was in before the `with` block."""
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
    """Draw torch's random numbers from the seed for the `with` block, and leave its global state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
