"""One training at a time in the threads of a process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

# The thread that trains, by process: a process that was forked during a training has a copy of this dictionary.
_training: dict[int, tuple[int, object]] = {}


@contextmanager
def one_training_per_process() -> Iterator[None]:
    """Raise an error if another thread of this process is in such a block; the blocks of one thread may be nested.

    A training seeds and restores the global random generators, and sets the modes of modules. Two of them at the same
    time would change each other's random numbers.

    Raises:
        RuntimeError: Another thread is in such a block.
    """
    process, own = os.getpid(), (get_ident(), object())
    thread, _ = found = _training.setdefault(process, own)  # one operation, so that two threads cannot both enter
    if thread != get_ident():
        message = (
            "Only one thread of a process may train at a time, got a training in each of two threads. "
            "Start each training in a process of its own, for example with multiprocessing."
        )
        raise RuntimeError(message)
    try:
        yield
    finally:
        if found is own:
            del _training[process]
