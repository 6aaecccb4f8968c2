"""Ctrl-C at random moments of `fit`."""

import gc
import random
import signal
import time
from contextlib import nullcontext
from multiprocessing import active_children
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from injection import Moments
from interrupted_training import Noisy, build
from processes import end_children

from udmlss import Checkpoint, fit

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupted destructors
STEPS = 6
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(parts):
    """Return what `fit` must leave as it was.

    The checks of shapes sample from the generator of Python, so that its state is compared without them only.
    """
    return {
        "modes": [part.training for part in parts],
        "hooks": [len(getattr(part, name)) for part in parts for name in HOOKS],
        "methods": [name for part in parts for name in vars(part) if name in {"train", "forward"}],
        "random state of torch": torch.get_rng_state().tolist(),
        "random state of NumPy": str(np.random.get_state()),  # noqa: NPY002 (the global one)
        "random state of Python": random.getstate() if jaxtyping.config.jaxtyping_disable else None,
        "modes of torch": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "processes": active_children(),
    }


def open_files():
    gc.collect()  # closes the pipes of workers whose start was interrupted
    return len(list(Path("/proc/self/fd").iterdir()))


def run(folder, at=None, **changes):
    """Call `fit` in a `with` block that may interrupt it; return the weights and the names of what it left changed."""
    model, arguments = build(max_steps=STEPS, **(changes | {"freeze_batch_norm": True}))
    model.trunk[1].running_mean += 0.5  # otherwise its statistics are not frozen
    model.trunk[4].eval()
    modules = [model, arguments["criterion"], arguments["rotation_head"]]
    parts = [part for module in modules for part in module.modules()]
    before, files = state_of(parts), open_files()
    try:
        with at or nullcontext():
            fit(model, Noisy(), **arguments, callbacks=Checkpoint(folder, every=2, resume=True))
    except KeyboardInterrupt:
        after = state_of(parts)  # while the traceback refers to all objects
    else:
        after = state_of(parts)
    weights = [value.clone() for module in modules for value in module.state_dict().values()]
    changed = [name for name, value in before.items() if after[name] != value]
    return weights, changed + ["open files"] * (open_files() > files)


def interrupt():
    raise KeyboardInterrupt


class Timer:
    """Sends SIGINT to this process after some time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        self.previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.previous)


def attack_fit(attack, tmp_path, points, expected, **changes):
    """Interrupt `fit` at each of some points, and resume it."""
    for number, (case, at) in enumerate(points):
        end_children()
        with attack.attempt(case):
            _, changed = run(tmp_path / str(number), at, **changes)
            place = getattr(at, "places", [""])[-1]
            assert not changed, f"{', '.join(changed)} changed at {place}"
            weights, _ = run(tmp_path / str(number))
            torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.mark.slow(attack="interrupts")
@pytest.mark.parametrize("seed", [0, 1])
def test_interrupts_at_function_calls_leave_everything_as_it_was(attack, tmp_path, seed):
    run(tmp_path / "first")  # which fills caches
    moments = Moments()
    expected, _ = run(tmp_path / "whole", moments)
    numbers = moments.sample(125, seed)
    points = [(f"moment {number}", Moments(number=number, action=interrupt)) for number in numbers]
    attack_fit(attack, tmp_path, points, expected)


@pytest.mark.slow(attack="interrupts")
@pytest.mark.parametrize(("num_workers", "n_points"), [(0, 100), (2, 20)])
def test_interrupts_at_random_times_leave_everything_as_it_was(attack, tmp_path, num_workers, n_points):
    run(tmp_path / "first")
    start = time.monotonic()
    expected, _ = run(tmp_path / "whole", num_workers=num_workers)
    seconds, generator = time.monotonic() - start, random.Random(0)  # noqa: S311 (no secrets)
    times = [generator.uniform(0, seconds) for _ in range(n_points)]
    points = [(f"after {after:.4f} s", Timer(after)) for after in times]
    attack_fit(attack, tmp_path, points, expected, num_workers=num_workers)
