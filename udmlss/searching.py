"""The nearest rows of a matrix: by faiss where it is installed, by PyTorch or scikit-learn otherwise."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Float32, Int64
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from udmlss.chunking import PAIRS

Found = tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]
Closest = Callable[[Float32[Tensor, "q d"], Float32[Tensor, "g d"], int], Found]


def import_faiss() -> ModuleType | None:
    """Return faiss, or None where it is not installed."""
    try:
        import faiss  # noqa: PLC0415 (optional)
    except ModuleNotFoundError:
        return None
    return faiss


def has_gpu(faiss: ModuleType | None) -> bool:
    """Return whether this faiss runs on a GPU, and PyTorch too."""
    return faiss is not None and faiss.get_num_gpus() > 0 and torch.cuda.is_available()


def most_similar(queries: Float32[Tensor, "q d"], gallery: Float32[Tensor, "g d"], k: int) -> Found:
    """Return for each query its k highest inner products, best first, and the rows of the gallery that have them."""
    faiss = import_faiss()
    if faiss is None or gallery.device.type != "cpu":
        return _highest(queries, gallery, gallery.new_zeros(len(gallery)), k)
    return _by_faiss(faiss, faiss.METRIC_INNER_PRODUCT, queries, gallery, k)


def searcher(faiss: ModuleType | None, device: torch.device) -> tuple[torch.device, Closest]:
    """Return where points of a device are searched, and what finds the k smallest squared distances and whose."""
    if faiss is not None and has_gpu(faiss):
        import_module("faiss.contrib.torch_utils")  # with it faiss takes tensors where they are
        return torch.device("cuda"), partial(faiss.knn_gpu, faiss.StandardGpuResources())
    if device.type != "cpu":
        return device, _by_torch
    return device, _by_sklearn if faiss is None else partial(_by_faiss, faiss, faiss.METRIC_L2)


def _by_faiss(faiss: ModuleType, metric: int, queries: Tensor, gallery: Tensor, k: int) -> Found:
    values, places = faiss.knn(queries.numpy(force=True), gallery.numpy(force=True), k, metric=metric)
    return torch.from_numpy(values), torch.from_numpy(places)


def _by_torch(queries: Tensor, gallery: Tensor, k: int) -> Found:
    products, places = _highest(queries, gallery, -gallery.square().sum(dim=1) / 2, k)
    return (queries.norm(dim=1, keepdim=True).square() - 2 * products).clamp(min=0), places


def _highest(queries: Tensor, gallery: Tensor, added: Tensor, k: int) -> Found:
    """Return each query's k highest inner products, a number for each row of the gallery added to them."""
    few = queries.split(max(1, PAIRS // len(gallery)))
    found = [torch.addmm(added, part, gallery.T).topk(k) for part in few]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def _by_sklearn(queries: Tensor, gallery: Tensor, k: int) -> Found:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(gallery.numpy())
    distances, places = search.kneighbors(queries.numpy())
    return torch.from_numpy(distances).float().square(), torch.from_numpy(places)
