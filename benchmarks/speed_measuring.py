"""Two ways to do one thing, measured side by side: time in turn, memory in a process of its own."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CHOICE = "UDMLSS_SPEED_CLOCK"  # in the environment, so that the processes of their own read the same clock
_PAGE = 1 / 256
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Row:
    """One thing beside another; the lower the ratio, the better.

    Args:
        line: The line of the benchmark that it belongs to.
        measured: What was measured.
        beside: What it is held against.
        ours: What it took, once for each pair; nothing where it could not be measured here.
        theirs: What the other took.
        aim: The ratio that it should not exceed.
        unit: Of both.
        note: What else to know.
        more: Further figures, for the JSON file.
    """

    line: str
    measured: str
    beside: str
    ours: Sequence[float]
    theirs: Sequence[float]
    aim: float | None = None
    unit: str = "s"
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the median ratio keeps to the aim."""
        return None if self.aim is None or not self.ours else median(self.ratios) <= self.aim


@dataclass(frozen=True)
class Cost:
    """What a run took in a process of its own: seconds, MiB beyond what was there before; and what it returned."""

    seconds: float
    mebibytes: float
    found: Any


def now() -> float:
    """Return the time by the clock chosen, in seconds."""
    return CLOCKS[os.environ.get(CHOICE, "wall")]()


def seconds(run: Callable[[], object]) -> float:
    """Return how long it takes, what a GPU still has to do included."""
    _wait()
    started = now()
    run()
    _wait()
    return now() - started


def in_turn(pairs: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Return what each gives, `pairs` times, after a first time that does not count; the order turns each time."""
    found: list[list[float]] = [[] for _ in measures]
    for measure in measures:
        measure()
    for pair in range(pairs):
        numbers = range(len(measures))
        for number in reversed(numbers) if pair % 2 else numbers:
            found[number].append(measures[number]())
    return found


def in_process(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Cost:
    """Run in a fresh process what `prepare(*arguments)` returns there, and measure that alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(cost_of, prepare, *arguments).result()


def cost_of(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Cost:
    """Run here what `prepare(*arguments)` returns, and measure that alone; what it gives is called, if it can be."""
    run = prepare(*arguments)
    RESET.write_text("5")  # the peak begins anew; getrusage's would include that of the process this one came from
    before = _mebibytes("VmRSS")
    started = now()
    found = run()
    cost = Cost(now() - started, max(_PAGE, _mebibytes("VmHWM") - before), found)
    return replace(cost, found=found()) if callable(found) else cost


def clustered(rows: int, dimensions: int, n_classes: int, *, noise: float = 2.0, seed: int = 0) -> Tensor:
    """Return unit vectors around as many random directions as classes; row i is of class i modulo their number."""
    draws = torch.Generator().manual_seed(seed)
    centres = functional.normalize(torch.randn(n_classes, dimensions, generator=draws))
    made = torch.randn(rows, dimensions, generator=draws).mul_(noise / dimensions**0.5)
    made += centres[torch.arange(rows) % n_classes]
    return functional.normalize(made, out=made)


def _mebibytes(name: str) -> float:
    """Return what the system says of this process: VmRSS, the memory it has, or VmHWM, the most it had."""
    found = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(found.split()[1]) / 1024


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
