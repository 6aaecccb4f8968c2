"""Nearest-neighbor search by PyTorch, and by faiss on a GPU.

On a CPU, faiss is not used: depending on whether the BLAS in its package knows the processor, it multiplies matrices a
little faster or several times slower than PyTorch (`python benchmarks/speed.py --only k-means`).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss._chunks import CPU, PAIRS, storage_device
from udmlss.neighbors.exact import exact_euclidean

Neighbors = tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]  # distances or similarities, and indices
Search = Callable[[Float[Tensor, "q d"], Float[Tensor, "g d"], int], tuple[Float[Tensor, "q k"], Int64[Tensor, "q k"]]]

_precision_lock = Lock()
_restores: list[Callable[[], None]] = []  # one for each open `full_precision`; the first restores the setting

faiss_errors: list[str] = []  # why faiss, although it is installed, is not used in this process


def import_faiss() -> ModuleType | None:
    """Import faiss and return the module, or None if faiss is not installed or does not load.

    If faiss is installed and does not load, the first call gives a warning.
    """
    if faiss_errors:
        return None
    try:
        import faiss  # noqa: PLC0415 (optional)

        faiss.get_num_gpus(), faiss.index_factory  # they must exist
    except Exception as error:  # noqa: BLE001 (a library that does not load raises errors of any type)
        if not (isinstance(error, ModuleNotFoundError) and error.name == "faiss"):
            _stop_using_faiss(error)
        return None
    return faiss


def _stop_using_faiss(error: Exception) -> None:
    faiss_errors.append(f"{type(error).__name__}: {error}")
    warnings.warn(
        f"Searches run without faiss, which is slower: faiss is installed, but does not load ({faiss_errors[0]}). "
        "Reinstall it, or uninstall it.",
        stacklevel=3,
    )


def has_gpu(faiss: ModuleType | None) -> bool:
    """Return whether both faiss and PyTorch can use a GPU."""
    return faiss is not None and faiss.get_num_gpus() > 0 and torch.cuda.is_available()


_search_device: ContextVar[torch.device] = ContextVar("search_device", default=CPU)


@contextmanager
def search_on(device: torch.device) -> Iterator[None]:
    """Search rows on the CPU on this device in the `with` block, one part at a time; the results are on the CPU.

    Rows on a GPU are searched there in any case. Rows stay on the CPU for a device without float64.
    """
    token = _search_device.set(storage_device((), device))
    try:
        yield
    finally:
        _search_device.reset(token)


def search_device(rows_on: torch.device) -> torch.device:
    """Return the device that rows on a device are searched on."""
    return _search_device.get() if rows_on.type == "cpu" else rows_on


def most_similar(queries: Float32[Tensor, "q d"], gallery: Float32[Tensor, "g d"], k: int) -> Neighbors:
    """Return the k highest inner products of each query, in descending order, and the rows of the gallery."""
    device = search_device(gallery.device)
    rows = gallery.to(device)
    values, indices = _inner_product(queries.to(device), rows, rows.new_zeros(len(rows)), k)
    return values.to(gallery.device), indices.to(gallery.device)


def euclidean_search(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[torch.device, Search]:
    """Choose the backend for points on a device; points in float64 are compared exactly, in PyTorch.

    Returns:
        The device that the search runs on, and a function (queries, gallery, k) -> (squared distances, indices) that
        returns the k nearest rows of the gallery in ascending order of distance.
    """
    if dtype == torch.float64:
        return device, exact_euclidean
    device = search_device(device)
    faiss = import_faiss() if device.type == "cuda" else None
    if faiss is not None and has_gpu(faiss) and _can_exchange_tensors():
        return device, partial(_faiss_gpu_knn, faiss, faiss.StandardGpuResources())
    return device, _euclidean


def _can_exchange_tensors() -> bool:
    """Import the module with which faiss reads and returns tensors on the GPU, and return whether it loads."""
    try:
        import_module("faiss.contrib.torch_utils")
    except Exception as error:  # noqa: BLE001 (a library that does not load raises errors of any type)
        _stop_using_faiss(error)
    return not faiss_errors


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices in float32 in the `with` block, also under autocast and if TF32 is allowed.

    TF32 is a setting of the process: the first of several threads changes it, and the last one restores it.
    """
    with _precision_lock:
        _restores.append((lambda: None) if _restores else _forbid_tf32())
    try:
        with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
            yield
    finally:
        with _precision_lock:
            _restores.pop()()


def _forbid_tf32() -> Callable[[], None]:
    """Let float32 matrices be multiplied in float32, and return a function that restores the setting."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by `fp32_precision`, which PyTorch has since 2.9
        return _forbid_tf32_of_backends()
    torch.set_float32_matmul_precision("highest")
    return partial(torch.set_float32_matmul_precision, before)


def _forbid_tf32_of_backends() -> Callable[[], None]:
    every: Any = torch.backends  # mypy does not know all of them
    backends = [every.cuda.matmul, every.mkldnn.matmul]
    before = [backend.fp32_precision for backend in backends]

    def set_all(settings: list[str]) -> None:
        for backend, setting in zip(backends, settings, strict=True):
            backend.fp32_precision = setting

    set_all(["ieee"] * len(backends))
    return partial(set_all, before)


def _faiss_gpu_knn(faiss: ModuleType, resources: object, queries: Tensor, gallery: Tensor, k: int) -> Neighbors:
    with torch.cuda.device(gallery.device):
        found: Neighbors = faiss.knn_gpu(resources, queries, gallery, k, device=torch.cuda.current_device())
    return found


def _euclidean(queries: Tensor, gallery: Tensor, k: int) -> Neighbors:
    products, indices = _inner_product(queries, gallery, -gallery.square().sum(dim=1) / 2, k)
    return (queries.norm(dim=1, keepdim=True).square() - 2 * products).clamp(min=0), indices


def _inner_product(queries: Tensor, gallery: Tensor, bias: Tensor, k: int) -> Neighbors:
    """Return the k highest values of inner product + bias of each query; `bias` has one number per gallery row."""
    parts = queries.split(max(1, PAIRS // len(gallery)))
    products = queries.new_empty(len(parts[0]), len(gallery))  # reused: to allocate it for each part takes time
    found = []
    with full_precision(gallery.device), torch.no_grad():
        for part in parts:
            scores = torch.addmm(bias, part, gallery.T, out=products[: len(part)])
            found.append(scores.max(dim=1, keepdim=True) if k == 1 else scores.topk(k))
    return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])
