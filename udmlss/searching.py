"""The most similar rows of a matrix: by faiss on the CPU where it is installed, by PyTorch otherwise."""

from types import ModuleType

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


def import_faiss() -> ModuleType | None:
    """Return faiss, or None where it is not installed."""
    try:
        import faiss  # noqa: PLC0415 (optional)
    except ModuleNotFoundError:
        return None
    return faiss


def most_similar(
    queries: Float32[Tensor, "q d"], gallery: Float32[Tensor, "g d"], k: int
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """Return for each query its k highest inner products, best first, and the rows of the gallery that have them."""
    faiss = import_faiss()
    if faiss is None or gallery.device.type != "cpu":
        values, places = (queries @ gallery.T).topk(k)
        return values, places
    metric = faiss.METRIC_INNER_PRODUCT
    values, places = faiss.knn(queries.numpy(force=True), gallery.numpy(force=True), k, metric=metric)
    return torch.from_numpy(values), torch.from_numpy(places)
