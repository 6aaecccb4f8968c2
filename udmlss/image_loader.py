"""Batches of images, loaded in worker processes that are started once."""

import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import get_all_start_methods, get_start_method
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from udmlss._checks import type_error
from udmlss._generators import seeded_generators
from udmlss.dataset import IndexedImages, stack_images
from udmlss.types import Images

_MOST_WORKERS = 8

Batch = tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]


class ImageLoader:
    """A loader of seeded batches from one or more datasets.

    Every batch has its own random seed. It depends neither on the process that loads it nor on the batches before it:
    the number of workers does not change the images, and a resumed training sees the same ones. The seed is that of the
    global generators of torch, NumPy and Python and of the generators that the dataset holds; see `find_generators`.

    With workers no item is loaded in the main process, so that a dataset may open its file in the first call of
    `__getitem__`. The workers are started with the first batch and are reused until `close`. They hold a copy of the
    datasets: later changes of a dataset have no effect on them.

    Args:
        datasets: Images as for `IndexedImages`.
        num_workers: Number of processes that load images. 0 loads them in the main process.
        pin_memory: Whether batches are loaded into pinned memory, from which they are copied faster to a CUDA GPU.

    Attributes:
        waiting: Time in seconds in which the main process waited for images.

    Raises:
        ValueError: A dataset has no images.
        TypeError: A dataset is not map-style, or it cannot be pickled and the workers are not started by "fork".

    Example:
        >>> images = IndexedImages(torch.zeros(5, 3, 8, 8))
        >>> with ImageLoader([images]) as loader:
        ...     [(batch.shape[0], indices) for batch, indices in loader.batches(images, [[0, 1], [4]])]
        [(2, tensor([0, 1])), (1, tensor([4]))]
    """

    def __init__(self, datasets: Sequence[Images], num_workers: int = 0, *, pin_memory: bool = False) -> None:
        self._datasets = list(datasets)
        self._source = _Source([IndexedImages(dataset) for dataset in datasets])
        self._num_workers, self._pin_memory = int(num_workers), pin_memory
        self.waiting = 0.0
        self._pool: _Pool | None = None
        self._owner: object = None

    def batches(
        self, images: Images, batches: Sequence[Sequence[int]], key: tuple[int, ...] = (0,), *, start: int = 0
    ) -> Iterator[Batch]:
        """Load batches, and yield the images (b, c, h, w) and their indices (b,).

        Args:
            images: One of the datasets.
            batches: The indices of each batch.
            key: Non-negative integers that seed the random transforms, together with the number of the batch.
            start: Number of the first batch that is loaded.

        Raises:
            ValueError: The images of a batch differ in shape.
            TypeError: An item does not hold an image tensor.
        """
        numbers = range(start, len(batches))
        yield from self._load([self._request("batch", images, batches[number], (*key, number)) for number in numbers])

    def items(self, images: Images, indices: Sequence[int], key: tuple[int, ...] = (0,)) -> list[Tensor]:
        """Load some images, whose shapes may differ, with one seed."""
        (loaded,) = self._load([self._request("items", images, indices, key)])
        return list(loaded)

    @contextmanager
    def keep_workers(self) -> Iterator[None]:
        """Reuse the workers in the `with` block, and end them after it. Blocks may be nested."""
        outer, self._owner = self._owner, (own := object())
        try:
            yield
        finally:
            if self._owner is own:  # a generator that ends late must not end the workers of a later block
                self._owner = outer
                self.close()

    def close(self) -> None:
        """End the worker processes. The next batch starts new ones."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def __enter__(self) -> "ImageLoader":  # noqa: PYI034 (the type checker of the tests does not support Self)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, kind: "_Kind", images: Images, indices: Sequence[int], key: tuple[int, ...]) -> "_Request":
        number = next(number for number, dataset in enumerate(self._datasets) if dataset is images)
        return _Request(kind, number, indices, key)

    def _load(self, requests: "Sequence[_Request]") -> Iterator[Any]:
        if not requests:
            return
        if self._pool is None or not self._pool.is_ready():
            self._pool = _Pool(self._source, self._num_workers, pin_memory=self._pin_memory)
        with closing(self._pool.load(requests)) as loaded:
            for _ in requests:
                started = time.perf_counter()
                item = next(loaded)
                self.waiting += time.perf_counter() - started
                yield item


def default_workers(datasets: Sequence[Images], device: torch.device) -> int:
    """Return the number of worker processes for a model on a device, if the caller gives none.

    Workers help if a GPU would wait for images that are decoded and transformed. They need the start method "fork",
    because others run the program of the caller again.
    """
    in_memory = all(isinstance(IndexedImages(images).images, Tensor) for images in datasets)
    start_method = get_start_method(allow_none=True) or get_all_start_methods()[0]  # the first one is the default
    if in_memory or device.type != "cuda" or start_method != "fork":
        return 0
    n_cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_WORKERS, n_cores)


_Kind = Literal["batch", "items"]


class _Request(NamedTuple):
    """Images that a worker loads."""

    kind: _Kind
    dataset: int  # its number
    indices: Sequence[int]
    key: tuple[int, ...]


class _Source(Dataset[Any]):
    """All datasets as one, whose index is a request."""

    def __init__(self, datasets: list[IndexedImages]) -> None:
        self._datasets = datasets

    def __getitem__(self, request: _Request) -> Any:  # noqa: ANN401 (one of three types)
        dataset = self._datasets[request.dataset]
        with seeded_generators(*request.key, holder=dataset):
            items = [dataset[index] for index in request.indices]
        return stack_images(items) if request.kind == "batch" else [image for image, _ in items]


class _Pool:
    """A `DataLoader` with persistent workers, which loads one list of requests after another."""

    def __init__(self, source: _Source, num_workers: int, *, pin_memory: bool) -> None:
        self._requests: list[_Request] = []
        self._iterator: Iterator[Any] = iter(())
        self._is_loading = False
        self._loader = DataLoader(
            source,
            batch_size=None,
            sampler=self._requests,  # the loader passes each request to the dataset in place of an index
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_ignore_sigterm,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # Without it the loader samples from the global generator
        )

    def is_ready(self) -> bool:
        """Return whether all workers are alive and no list of requests is being loaded."""
        return not self._is_loading and all(process.is_alive() for process in self._workers())

    def load(self, requests: Sequence[_Request]) -> Generator[Any]:
        """Load requests in order. The pool is not ready again after an error."""
        self._is_loading = True
        self._requests[:] = requests
        self._start()
        for number in range(len(requests)):
            try:
                batch = next(self._iterator)
            except BaseException:
                self.close()
                raise
            self._is_loading = number < len(requests) - 1  # The caller may not ask for more than the last batch
            try:
                yield batch
            except GeneratorExit:
                self._is_loading = False
                raise

    def close(self) -> None:
        """End the workers, also if a traceback refers to them."""
        getattr(self._iterator, "_shutdown_workers", lambda: None)()  # torch would wait for the last reference
        for process in self._workers():
            if process.is_alive():
                process.kill()  # torch sends SIGTERM, which workers ignore

    def _workers(self) -> list[BaseProcess]:
        found: list[BaseProcess] = getattr(self._iterator, "_workers", [])
        return found

    def _start(self) -> None:
        """Start an iteration over the requests, and the workers before the first one."""
        try:
            self._iterator = iter(self._loader)
        except (AttributeError, PicklingError, TypeError) as error:
            method = get_start_method()
            if method == "fork":
                raise
            raise type_error(
                f'The start method "{method}" sends `images` and their transform to worker processes, so they must be '
                "picklable",
                error,
                "Replace a lambda or local function by a function at the top level of a module, or pass "
                "`num_workers=0`",
            ) from error


def _ignore_sigterm(_worker: int) -> None:
    """Let a worker ignore SIGTERM, which cluster schedulers send to all processes of a job.

    The main process then saves a checkpoint and ends, and its workers end with it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
