"""Measurements of time and memory, and their sizes."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CLOCK_VARIABLE = "UDMLSS_SPEED_CLOCK"  # an environment variable, so that child processes use the same clock
_PAGE = 1 / 256  # MiB
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured. Every field is a command-line option of speed.py; several numbers are comma-separated.

    Args:
        pairs: Number of times that both sides of a ratio are measured, if that takes seconds.
        images: Number of glyphs that are trained on.
        width: Number of channels of the first layers of the network.
        steps: Number of optimizer steps.
        relabel_every: Number of optimizer steps in a round.
        round_images: Number of glyphs of the line "round".
        pixels: Side length of the images of the line "cpu".
        cpu_steps: Number of steps of the lines "cpu" and "ranks".
        ranks: Numbers of processes of the line "ranks".
        sampler_labels: Number of labels of the line "sampler".
        sampler_clusters: Number of clusters of the line "sampler".
        rows: Number of embeddings of the line "evaluate"; SOP has 60,502.
        dimensions: Dimension of these embeddings.
        default_rows: Number of embeddings for the comparison with pytorch-metric-learning's defaults, whose memory
            grows with the square. 0 skips this comparison.
        evaluations: Number of evaluations of each kind.
        sop: Embeddings, dimensions, clusters and largest number of iterations of k-means on a dataset as large as SOP.
        million: The same four numbers for a million embeddings.
        cold: The same four numbers for k-means with initial centers that each implementation chooses itself.
        loss_batches: Batch sizes of the line "metric-loss".
        chunk_batch: Number of images per step of the line "chunks".
        growth: Numbers of embeddings of the line "growth".
        share: Number of images of the line "share", and their height and width in pixels.
        photos: Folder of pictures of the lines "command" and "gpu-loader". By default pictures are made.
        pictures: Number of pictures that are read from the folder, or made, of 500 x 375 pixels, without a folder.
        command_pixels: Height and width to which the line "command" crops them.
        command_epochs: Number of epochs of the line "command".
        command_pairs: Number of times that both sides of the lines "command" and "gpu-loader" are measured.
        communities: Embeddings and dimensions of the line "clustering", whose aim is a minute.
        many_communities: The same for an aim of 20 minutes.
        search: Embeddings and dimensions of an index of the line "search".
        large_search: The same of a larger index.
        queries: Number of queries of the line "search".
        exact_up_to: Size up to which searches are exact: a number of multiplications in the line "clustering", and of
            elements of the embeddings in the line "search". -1 is the library's value.
        gpu_rows: Embeddings and dimensions of the line "gpu-clustering".
    """

    pairs: int = 5
    images: int = 1500
    width: int = 64
    steps: int = 30
    relabel_every: int = 15
    round_images: int = 6000
    pixels: int = 112
    ranks: tuple[int, ...] = (2, 4)
    cpu_steps: int = 5
    sampler_labels: int = 1_000_000
    sampler_clusters: int = 10_000
    rows: int = 10_000
    dimensions: int = 512
    default_rows: int = 4000
    evaluations: int = 3
    sop: tuple[int, ...] = (59_551, 512, 11_318, 25)
    million: tuple[int, ...] = (1_000_000, 128, 10_000, 3)
    cold: tuple[int, ...] = (15_000, 512, 2_800, 25)
    loss_batches: tuple[int, ...] = (80, 240)
    chunk_batch: int = 1280
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    share: tuple[int, ...] = (60_000, 32)
    photos: str = ""
    pictures: int = 600
    command_pixels: int = 160
    command_epochs: int = 2
    command_pairs: int = 3
    communities: tuple[int, ...] = (60_000, 512)
    many_communities: tuple[int, ...] = (1_000_000, 128)
    search: tuple[int, ...] = (100_000, 128)
    large_search: tuple[int, ...] = (1_000_000, 128)
    queries: int = 1000
    exact_up_to: int = -1
    gpu_rows: tuple[int, ...] = (30_000, 512)


@dataclass(frozen=True)
class Row:
    """A measurement and its baseline. A lower ratio is better.

    Args:
        line: Line of the benchmark.
        measured: Description of the measurement.
        baseline: Description of the baseline.
        ours: Values of the measurement, one per pair; empty if it could not be measured here.
        theirs: Values of the baseline.
        aim: Highest ratio that is acceptable. None is for information only.
        unit: Unit of the values.
        note: Remarks.
        more: Further values for the JSON file.
    """

    line: str
    measured: str
    baseline: str
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
        """Whether the median ratio is at most the aim; None without an aim or a measurement."""
        return None if self.aim is None or not self.ours else median(self.ratios) <= self.aim


@dataclass(frozen=True)
class Cost:
    """Time in seconds, memory in MiB beyond that at the start, and the result of a function."""

    seconds: float
    mebibytes: float
    found: Any


def now() -> float:
    """Return the time of the chosen clock, in seconds."""
    return CLOCKS[os.environ.get(CLOCK_VARIABLE, "wall")]()


def seconds(function: Callable[[], object]) -> float:
    """Return the time that a function takes, including its work on a GPU."""
    _synchronize()
    started = now()
    function()
    _synchronize()
    return now() - started


@contextmanager
def timed_calls(methods: Mapping[str, tuple[object, str]]) -> Iterator[dict[str, float]]:
    """Add up the time of all calls in the `with` block, by name, of methods given as an owner and an attribute."""
    totals = dict.fromkeys(methods, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> object:
            _synchronize()
            started = now()
            found = function(*args, **kwargs)
            _synchronize()
            totals[name] += now() - started
            return found

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in methods.items():
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield totals


def measure_alternately(pairs: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Call all functions `pairs` times, in alternating order, after a warm-up; return the results of each."""
    found: list[list[float]] = [[] for _ in measures]
    for measure in measures:
        measure()
    for pair in range(pairs):
        numbers = range(len(measures))
        for number in reversed(numbers) if pair % 2 else numbers:
            found[number].append(measures[number]())
    return found


def cost_in_process(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Cost:
    """Return the cost of the function that `prepare(*arguments)` returns, in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(cost_of, prepare, *arguments).result()


def cost_of(prepare: Callable[..., Callable[[], object]], *arguments: object) -> Cost:
    """Return the cost of the function that `prepare(*arguments)` returns, without the cost of `prepare`.

    If the function returns a function, the result is that of the latter, whose cost is not measured.
    """
    function = prepare(*arguments)
    _CLEAR.write_text("5")  # resets the peak; that of getrusage would include the parent process
    before = _mebibytes("VmRSS")
    started = now()
    found = function()
    cost = Cost(now() - started, max(_PAGE, _mebibytes("VmHWM") - before), found)
    return replace(cost, found=found()) if callable(found) else cost


def random_clusters(rows: int, dimensions: int, n_classes: int, *, noise: float = 2.0, seed: int = 0) -> Tensor:
    """Return unit vectors around random centers; row i belongs to center i modulo `n_classes`."""
    generator = torch.Generator().manual_seed(seed)
    centers = functional.normalize(torch.randn(n_classes, dimensions, generator=generator))
    vectors = torch.randn(rows, dimensions, generator=generator).mul_(noise / dimensions**0.5)
    vectors += centers[torch.arange(rows) % n_classes]
    return functional.normalize(vectors, out=vectors)


def _mebibytes(name: str) -> float:
    """Return the resident memory of this process: VmRSS, the present value, or VmHWM, the peak."""
    found = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(found.split()[1]) / 1024


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
