"""Lloyd's k-means part by part: for more rows than memory holds, and for a GPU."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from numpy.typing import NDArray
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin, pairwise_distances_argmin_min
from torch import Tensor

from udmlss.chunking import HELD, row_slices

_SAMPLED = 64  # points a cluster from which the start is made: with 1,000 clusters of 10,000,000 points, 1 in 156
_ONE_BY_ONE = 1024  # most points that k-means++ draws one after the other
_AT_ONCE = 16  # one in so many of those drawn, or of those left to draw, are drawn at once
_APART = 1 / 1024  # share by which the halves of a split cluster start from its centroid, as in faiss

Nearest = Callable[[Float32[Tensor, "c d"], Float32[Tensor, "k d"]], Int64[Tensor, " c"]]


def lloyd(
    points: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], n_iterations: int, faiss: ModuleType | None
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, "k d"]]:
    """Return the points' clusters and the centroids after so many iterations, or fewer if no point moves any more.

    Each iteration reads the points once, a part at a time, and sums them in float64. An empty cluster takes half of
    one of the largest.

    Args:
        points: Points of any floating type, in memory, on a GPU or mapped from a file.
        centroids: Where to start.
        n_iterations: Most iterations.
        faiss: Finds the nearest centroids, on a GPU if it can. Without it scikit-learn does.
    """
    device, nearest = _search(faiss)
    centroids = centroids.to(device, torch.float32)
    labels = torch.full((len(points),), -1, device=device)
    for _ in range(n_iterations + 1):  # the last one assigns only
        sums, n_moved = _visit(points, centroids, labels, nearest)
        if n_moved == 0:
            break
        centroids = _moved(centroids, sums, labels.bincount(minlength=len(centroids)))
    return labels.cpu(), centroids


def sampled_start(
    points: Float[Tensor, "n d"], n_clusters: int, n_iterations: int, seed: int, faiss: ModuleType | None
) -> Float32[Tensor, "k d"]:
    """Return the centroids of k-means on a sample of the points, or where it would start if the sample is all."""
    n, d = points.shape
    size = min(n, max(n_clusters, min(_SAMPLED * n_clusters, HELD // d)))
    rows = np.sort(np.random.default_rng(seed).choice(n, size, replace=False, shuffle=False))
    sample = points[torch.from_numpy(rows).to(points.device)].float()
    drawn = torch.from_numpy(far_apart(sample.numpy(force=True), n_clusters, seed, faiss))
    return drawn if size == n else lloyd(sample, drawn, n_iterations, faiss)[1]


def far_apart(points: NDArray[np.float32], n_clusters: int, seed: int, faiss: ModuleType | None) -> NDArray[np.float32]:
    """Return points that k-means++ draws; more than 1,024 of them several at once.

    A point's chance is its squared distance to the nearest that was drawn before. With thousands of clusters k-means
    itself takes less time than to look at all points after each draw.
    """
    if n_clusters <= _ONE_BY_ONE:
        return _one_by_one(points, n_clusters, seed, faiss)
    draws = np.random.default_rng(seed)
    chosen = drawn = draws.integers(len(points), size=1)
    apart = np.full(len(points), np.inf, dtype=np.float32)
    while len(chosen) < n_clusters:
        apart = np.minimum(apart, _squares(points, points[drawn], faiss)).clip(min=np.finfo(np.float32).tiny)
        apart[chosen] = 0
        count = max(1, min(len(chosen), n_clusters - len(chosen)) // _AT_ONCE)
        chances = apart / apart.sum(dtype=np.float64)
        drawn = draws.choice(len(points), count, replace=False, p=chances, shuffle=False)
        chosen = np.concatenate([chosen, drawn])
    return points[chosen]


def _one_by_one(
    points: NDArray[np.float32], n_clusters: int, seed: int, faiss: ModuleType | None
) -> NDArray[np.float32]:
    if faiss is None:
        return np.asarray(kmeans_plusplus(points, n_clusters, random_state=seed)[0])
    trained = train_faiss(points, n_clusters, start=None, n_iterations=0, seed=seed, faiss=faiss)
    return np.asarray(trained.centroids)


def _squares(points: NDArray[np.float32], others: NDArray[np.float32], faiss: ModuleType | None) -> NDArray[np.float32]:
    """Return the squared distance of each point to the nearest of the others."""
    if faiss is None:
        return np.asarray(pairwise_distances_argmin_min(points, others, metric="sqeuclidean")[1], dtype=np.float32)
    return np.asarray(faiss.knn(points, others, 1)[0].ravel())


def train_faiss(
    points: NDArray[np.float32],
    n_clusters: int,
    *,
    start: NDArray[np.float32] | None,
    n_iterations: int,
    seed: int,
    faiss: ModuleType,
) -> Any:  # noqa: ANN401 (faiss has no types)
    """Return faiss's own k-means after it trained on all points; without a start, from what its k-means++ draws."""
    trained = faiss.Kmeans(
        points.shape[1],
        n_clusters,
        niter=n_iterations,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,  # or C prints a warning
        max_points_per_centroid=len(points),  # or it trains on 256 points a centroid without a word
    )
    trained.train(points, init_centroids=start)
    return trained


def has_gpu(faiss: ModuleType | None) -> bool:
    """Return whether this faiss runs on a GPU, and PyTorch too."""
    return faiss is not None and faiss.get_num_gpus() > 0 and torch.cuda.is_available()


def _search(faiss: ModuleType | None) -> tuple[torch.device, Nearest]:
    """Return where the nearest centroids are looked for, and how."""
    if faiss is None:
        return torch.device("cpu"), lambda rows, centroids: torch.from_numpy(
            pairwise_distances_argmin(rows.numpy(), centroids.numpy())
        )
    if not has_gpu(faiss):
        return torch.device("cpu"), lambda rows, centroids: torch.from_numpy(
            faiss.knn(rows.numpy(), centroids.numpy(), 1)[1].ravel()
        )
    import_module("faiss.contrib.torch_utils")  # with it faiss takes tensors where they are
    resources = faiss.StandardGpuResources()
    return torch.device("cuda"), lambda rows, centroids: faiss.knn_gpu(resources, rows, centroids, 1)[1].ravel()


def _visit(
    points: Float[Tensor, "n d"], centroids: Float32[Tensor, "k d"], labels: Int64[Tensor, " n"], nearest: Nearest
) -> tuple[Float64[Tensor, "k d"], int]:
    """Set the labels to the nearest centroids; return the sums of the clusters, and how many labels changed."""
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    n_moved = 0
    for rows in row_slices(points):
        part = points[rows].to(centroids.device, torch.float32).contiguous()
        found = nearest(part, centroids)
        n_moved += int((found != labels[rows]).sum())
        labels[rows] = found
        sums.index_add_(0, found, part.double())
    return sums, n_moved


def _moved(
    centroids: Float32[Tensor, "k d"], sums: Float64[Tensor, "k d"], sizes: Int64[Tensor, " k"]
) -> Float32[Tensor, "k d"]:
    """Return the means of the clusters; an empty one and one of the largest start from both sides of the latter's."""
    centroids = torch.where(sizes.unsqueeze(1) > 0, sums / sizes.clamp(min=1).unsqueeze(1), centroids).float()
    empty = (sizes == 0).nonzero().flatten()
    largest = sizes.argsort(descending=True)[: len(empty)]
    largest = largest[sizes[largest] > 1]
    empty = empty[: len(largest)]
    apart = torch.full((centroids.shape[1],), _APART, device=centroids.device)
    apart[1::2] *= -1
    centroids[empty] = centroids[largest] * (1 + apart)
    centroids[largest] *= 1 - apart
    return centroids
