"""Exact nearest-neighbor search by faiss, PyTorch or scikit-learn."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Float32, Int64
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from udmlss._chunks import PAIRS

Neighbors = tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]  # distances or similarities, and indices
Search = Callable[[Float32[Tensor, "q d"], Float32[Tensor, "g d"], int], Neighbors]


def import_faiss() -> ModuleType | None:
    """Import faiss and return the module, or None if faiss is not installed."""
    try:
        import faiss  # noqa: PLC0415 (optional)
    except ModuleNotFoundError:
        return None
    return faiss


def has_gpu(faiss: ModuleType | None) -> bool:
    """Return whether both faiss and PyTorch can use a GPU."""
    return faiss is not None and faiss.get_num_gpus() > 0 and torch.cuda.is_available()


def most_similar(queries: Float32[Tensor, "q d"], gallery: Float32[Tensor, "g d"], k: int) -> Neighbors:
    """Return the k highest inner products of each query, in descending order, and the rows of the gallery."""
    faiss = import_faiss()
    if faiss is None or gallery.device.type != "cpu":
        return _torch_inner_product(queries, gallery, gallery.new_zeros(len(gallery)), k)
    return _faiss_knn(faiss, faiss.METRIC_INNER_PRODUCT, queries, gallery, k)


def euclidean_search(faiss: ModuleType | None, device: torch.device) -> tuple[torch.device, Search]:
    """Choose the backend for points on a device.

    Returns:
        The device that the search runs on, and a function (queries, gallery, k) -> (squared distances, indices) that
        returns the k nearest rows of the gallery in ascending order of distance.
    """
    if faiss is not None and has_gpu(faiss):
        import_module("faiss.contrib.torch_utils")  # lets faiss read and return tensors on the GPU
        return torch.device("cuda"), partial(faiss.knn_gpu, faiss.StandardGpuResources())
    if device.type != "cpu":
        return device, _torch_euclidean
    return device, _sklearn_euclidean if faiss is None else partial(_faiss_knn, faiss, faiss.METRIC_L2)


def _faiss_knn(faiss: ModuleType, metric: int, queries: Tensor, gallery: Tensor, k: int) -> Neighbors:
    values, indices = faiss.knn(queries.numpy(force=True), gallery.numpy(force=True), k, metric=metric)
    return torch.from_numpy(values), torch.from_numpy(indices)


def _torch_euclidean(queries: Tensor, gallery: Tensor, k: int) -> Neighbors:
    products, indices = _torch_inner_product(queries, gallery, -gallery.square().sum(dim=1) / 2, k)
    return (queries.norm(dim=1, keepdim=True).square() - 2 * products).clamp(min=0), indices


def _torch_inner_product(queries: Tensor, gallery: Tensor, bias: Tensor, k: int) -> Neighbors:
    """Return the k highest values of inner product + bias of each query; `bias` has one number per gallery row."""
    parts = queries.split(max(1, PAIRS // len(gallery)))
    found = [torch.addmm(bias, part, gallery.T).topk(k) for part in parts]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def _sklearn_euclidean(queries: Tensor, gallery: Tensor, k: int) -> Neighbors:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(gallery.numpy())
    distances, indices = search.kneighbors(queries.numpy())
    return torch.from_numpy(distances).float().square(), torch.from_numpy(indices)
