"""Random number generators: the global ones, and those that a dataset or its transforms hold."""

# ruff: noqa: NPY002 (transforms and miners of other libraries sample from the global generator of NumPy)

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import PurePath
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_GLOBAL_GENERATORS = (random.random.__self__, np.random.rand.__self__, torch.default_generator)  # type: ignore[attr-defined]
_LEAVES = (str, bytes, int, float, Tensor, np.ndarray, PurePath, ModuleType, type, type(None), random.SystemRandom)
_LIBRARIES = {"builtins", "torch", "torchvision", "udmlss"}  # whose classes use no generators of their own
_MAX_OBJECTS = 2000  # that are searched for generators
_MAX_ELEMENTS = 100  # of a list or dictionary: a list of transforms is short, a list of files need not be searched


@contextmanager
def seeded_generators(*key: int, holder: object = None) -> Iterator[None]:
    """Seed random number generators of the CPU for the `with` block, and restore their states after it.

    Args:
        key: Non-negative integers that identify the block, such as a seed, a round and a batch. Different keys give
            different random numbers.
        holder: A dataset. Its own generators are seeded in addition to the global ones of torch, NumPy and Python; see
            `find_generators`.

    Example:
        >>> with seeded_generators(0, 7):
        ...     first = torch.rand(3)
        >>> with seeded_generators(0, 7):
        ...     torch.equal(torch.rand(3), first)
        True
    """
    # The length of the key is part of the seed because SeedSequence pads with zeros: (1,) would equal (1, 0).
    sequence = np.random.SeedSequence((len(key), *key))
    first_seed, second_seed = map(int, sequence.generate_state(2, np.uint64))
    own = find_generators(holder)
    with ExitStack() as stack:
        stack.enter_context(_restore_global_states())
        for generator, child in zip(own, sequence.spawn(len(own)), strict=True):
            stack.callback(_seed(generator, int(child.generate_state(1)[0])))
        random.seed(first_seed)
        np.random.seed(first_seed % 2**32)
        torch.default_generator.manual_seed(second_seed)
        yield


@contextmanager
def fork_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python for the `with` block, and restore their states after it.

    Args:
        seed: The seed of all of them.
        device: Device whose generator is included, in addition to that of the CPU.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _restore_global_states():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def global_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of torch, NumPy and Python, as tensors and numbers."""
    _, words, *numpy = np.random.get_state()
    version, integers, gauss = random.getstate()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [torch.from_numpy(np.asarray(words, np.int64)), *numpy],
        "python": [version, torch.tensor(integers), gauss],
    }


def set_global_states(states: dict[str, Any], device: torch.device) -> None:
    """Set the states that `global_states` returned. A state of a CUDA generator is ignored on another device."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    words, *numpy = states["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *numpy))
    version, integers, gauss = states["python"]
    random.setstate((version, tuple(integers.tolist()), gauss))


def find_generators(holder: object) -> list[object]:
    """Return the random number generators that an object holds, always in the same order.

    The attributes of the object are searched, their attributes, and so on, and the variables that its functions use.
    Generators are those of Python, NumPy and torch, and objects with a method `set_random_seed`, such as the transforms
    of Albumentations.
    """
    found: list[object] = []
    pending, visited = deque([holder]), set(map(id, _GLOBAL_GENERATORS))
    while pending and len(visited) < _MAX_OBJECTS:
        each = pending.popleft()
        if isinstance(each, _LEAVES) or id(each) in visited:
            continue
        visited.add(id(each))
        if isinstance(each, torch.Generator) and each.device.type != "cpu":
            continue
        if isinstance(each, _GENERATORS) or callable(getattr(type(each), "set_random_seed", None)):
            found.append(each)
        else:
            pending.extend(_parts(each))
    return found


@contextmanager
def _restore_global_states() -> Iterator[None]:
    """Restore the states of the generators of torch, NumPy and Python after the `with` block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(generator: object, seed: int) -> Callable[[], object]:
    """Seed a generator, and return a function that restores its state."""
    if isinstance(generator, random.Random):
        restore: Callable[[], object] = partial(generator.setstate, generator.getstate())
        generator.seed(seed)
    elif isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        restore = partial(setattr, bits, "state", bits.state)
        bits.state = type(bits)(seed).state
    elif isinstance(generator, np.random.RandomState):
        restore = partial(generator.set_state, generator.get_state())
        generator.seed(seed)
    elif isinstance(generator, torch.Generator):
        restore = partial(generator.set_state, generator.get_state())
        generator.manual_seed(seed)
    else:
        restore = tuple  # An object with `set_random_seed` need not have a state that can be read
        generator.set_random_seed(seed)  # type: ignore[attr-defined]
    return restore


def _parts(each: object) -> Iterator[object]:
    """Yield the objects that an object holds. Containers are read without methods that a subclass may override."""
    if isinstance(each, dict):
        yield from islice(dict.values(each), _MAX_ELEMENTS)
    elif isinstance(each, list):
        yield from islice(list.__iter__(each), _MAX_ELEMENTS)
    elif isinstance(each, tuple):
        yield from islice(tuple.__iter__(each), _MAX_ELEMENTS)
    elif isinstance(each, partial):
        yield from (each.func, each.args, each.keywords)
    elif isinstance(each, MethodType):
        yield from (each.__self__, each.__func__)
    elif isinstance(each, BuiltinMethodType):
        yield each.__self__
    elif isinstance(each, FunctionType):
        yield from _variables(each)
    if hasattr(each, "__dict__"):
        yield from list(vars(each).values())
        for member in _members(type(each)):  # type: ignore[arg-type] # classes are hashable
            yield from _variables(member) if isinstance(member, FunctionType) else (member,)


def _variables(function: FunctionType) -> Iterator[object]:
    """Yield the variables outside of a function that it uses."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # A variable without a value
            continue
    yield from function.__defaults__ or ()
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        # Functions of other modules would extend the search to whole libraries
        if not isinstance(value, FunctionType) or value.__globals__ is function.__globals__:
            yield value


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names in the code of a function and of the functions in it."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return tuple(dict.fromkeys(chain(code.co_names, *inner)))


@lru_cache(maxsize=256)
def _members(kind: type) -> tuple[object, ...]:
    """Return the methods and generators of a class and its bases, except for those of common libraries."""
    bases = (base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _LIBRARIES)
    members = chain.from_iterable(vars(base).values() for base in bases)
    return tuple(member for member in members if isinstance(member, (FunctionType, *_GENERATORS)))
