"""Random numbers of transforms from a seed, in whatever process they are drawn."""

# ruff: noqa: NPY002 (transforms of others draw from numpy's global generator)

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def drawn_from(*key: int) -> Iterator[None]:
    """Let torch, numpy and Python draw from a seed of these numbers for the `with` block; their states come back.

    Only generators of the CPU are meant, which is where transforms draw.

    Args:
        key: Numbers from 0 that tell this block from others, such as a seed, a round and a batch.

    Example:
        >>> with drawn_from(0, 7):
        ...     first = torch.rand(3)
        >>> with drawn_from(0, 7):
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
