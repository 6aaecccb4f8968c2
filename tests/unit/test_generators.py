import io
import random
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from udmlss._generators import (
    find_generators,
    fork_generators,
    global_states,
    seeded_generators,
    set_global_states,
)

KEYS = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 0), (2**40, 1, 5)]
GENERATOR = np.random.default_rng(7)


def sample():
    """Sample from the global generators of Python, NumPy and torch, as transforms do."""
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002, S311


def sample_seeded(key):
    with seeded_generators(*key):
        return sample()


def test_the_same_key_gives_the_same_random_numbers():
    first = [sample_seeded(key) for key in KEYS]
    sample()
    assert [sample_seeded(key) for key in KEYS] == first


def test_different_keys_give_different_random_numbers_in_every_library():
    for numbers in zip(*map(sample_seeded, KEYS), strict=True):
        assert len(set(numbers)) == len(KEYS)


@pytest.mark.parametrize("context", [lambda: seeded_generators(9), lambda: fork_generators(9, torch.device("cpu"))])
@pytest.mark.parametrize("error", [None, KeyError])
def test_global_states_are_restored(context, error):
    def sample_after(use_context):
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        if use_context:
            with pytest.raises(error) if error else nullcontext(), context():
                sample()
                if error:
                    raise error
        return sample()

    assert sample_after(use_context=True) == sample_after(use_context=False)


def test_fork_generators_seeds_the_block():
    with fork_generators(3, torch.device("cpu")):
        first = sample()
    with fork_generators(2**32 + 3, torch.device("cpu")):  # NumPy has seeds of 32 bits
        assert sample()[1] == first[1]
    assert first[2] == float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert first[0] == random.Random(3).random()  # noqa: S311


def test_states_that_were_saved_and_loaded_continue_the_random_numbers():
    device = torch.device("cpu")
    random.gauss(0, 1)  # Python and NumPy hold a second normal number back
    np.random.randn()  # noqa: NPY002
    file = io.BytesIO()
    torch.save(global_states(device), file)
    expected = *sample(), random.gauss(0, 1), np.random.randn()  # noqa: NPY002
    sample()
    file.seek(0)
    set_global_states(torch.load(file, weights_only=True), device)
    assert (*sample(), random.gauss(0, 1), np.random.randn()) == expected  # noqa: NPY002


class Transform:
    """A transform with a generator of its own that cannot be read, as in Albumentations."""

    def __init__(self):
        self.set_random_seed(None)

    def set_random_seed(self, seed):
        self._random = random.Random(seed)  # noqa: S311

    def random(self):
        return self._random.random()


class Uses:
    """A dataset that uses a generator through a method of another name and a global variable."""

    def __getitem__(self, _index):
        return self.load()

    def load(self):
        return sample_from_global()


def sample_from_global():
    return GENERATOR.random()


class ClassAttribute:
    generator = np.random.RandomState(3)


class Items(list):
    """A dataset whose items must not be loaded in the search."""

    def __getitem__(self, _index):
        raise AssertionError

    __iter__ = __getitem__


OWN = {
    "Random": lambda: random.Random(3),  # noqa: S311
    "Generator": lambda: np.random.default_rng(3),
    "RandomState": lambda: np.random.RandomState(3),
    "torch": lambda: torch.Generator().manual_seed(3),
    "set_random_seed": Transform,
}
HOLDERS = {
    "attribute": lambda own: SimpleNamespace(size=3, transform=own),
    "nested": lambda own: SimpleNamespace(transform=nn.Sequential(SimpleModule([{"key": (1, own)}]))),
    "closure": lambda own: SimpleNamespace(transform=lambda image: (image, own)),
    "default": lambda own: SimpleNamespace(transform=lambda image, own=own: (image, own)),
    "partial": lambda own: SimpleNamespace(transform=partial(max, own, key=own)),
    "method": lambda own: SimpleNamespace(transform=SimpleModule(own).forward),
    "subset": lambda own: Subset(SimpleNamespace(transform=own), [0]),
    "long list": lambda own: SimpleNamespace(paths=["path"] * 10**6, transform=own),
}


class SimpleModule(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self):
        return self.own


def sample_from(own):
    return float(torch.rand((), generator=own)) if isinstance(own, torch.Generator) else float(own.random())


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("make", [OWN["Generator"], OWN["set_random_seed"]])
def test_finds_a_generator_wherever_it_is_held(holder, make):
    own = make()
    assert find_generators(holder(own)) == [own]


def test_finds_generators_of_functions_methods_and_classes():
    assert find_generators(Uses()) == find_generators(sample_from_global) == [GENERATOR]
    assert find_generators(SimpleNamespace(noise=GENERATOR.normal)) == [GENERATOR]
    assert find_generators(ClassAttribute()) == [ClassAttribute.generator]


def test_finds_nothing_in_objects_without_generators_and_loads_no_items():
    assert find_generators(None) == []
    assert find_generators(Items([1, 2])) == []
    global_generators = [torch.default_generator, random.random, np.random.rand]
    assert find_generators(SimpleNamespace(a=global_generators, b=random.SystemRandom(), c=random, d=Transform)) == []
    assert len(find_generators([[random.Random(0)] * 50 + [random.Random() for _ in range(50)]] * 99)) == 51  # noqa: S311


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_own_generators_are_seeded_by_the_key_and_their_states_are_restored(make):
    own, other = make(), make()
    first = sample_from(own)
    found = {}
    for key in KEYS:
        with seeded_generators(*key, holder=[own]):
            found[key] = sample_from(own)
        with seeded_generators(*key, holder=[other]):
            assert sample_from(other) == found[key]
    assert len({first, *found.values()}) == 1 + len(KEYS)
    if not isinstance(own, Transform):
        untouched = make()
        assert sample_from(untouched) == first
        assert sample_from(untouched) == sample_from(own)


def test_two_generators_are_seeded_differently():
    pair = [np.random.default_rng(3), np.random.default_rng(3)]
    with seeded_generators(0, holder=pair):
        assert pair[0].random() != pair[1].random()
