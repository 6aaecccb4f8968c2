"""Where k-means starts: at points far from each other."""

from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from udmlss.chunking import HELD
from udmlss.lloyd import lloyd
from udmlss.searching import searcher

_SAMPLED = 64  # points a cluster from which the start is made: with 1,000 clusters of 10,000,000 points, 1 in 156
_ONE_BY_ONE = 1024  # most points that k-means++ draws one after the other
_AT_ONCE = 16  # one in so many of those drawn, or of those left to draw, are drawn at once


def start_of(
    points: Float[Tensor, "n d"], n_clusters: int, n_iterations: int, seed: int, faiss: ModuleType | None
) -> Float32[Tensor, "k d"]:
    """Return points far apart or, where memory does not hold all points, the centroids of k-means on a sample."""
    n, d = points.shape
    if points.numel() <= HELD:
        return far_apart(points.float(), n_clusters, seed, faiss)
    size = max(n_clusters, min(_SAMPLED * n_clusters, HELD // d))
    rows = np.sort(np.random.default_rng(seed).choice(n, size, replace=False, shuffle=False))
    sample = points[torch.from_numpy(rows).to(points.device)].float()
    return lloyd(sample, far_apart(sample, n_clusters, seed, faiss), n_iterations, faiss)[1]


def far_apart(
    points: Float32[Tensor, "n d"], n_clusters: int, seed: int, faiss: ModuleType | None
) -> Float32[Tensor, "k d"]:
    """Return points that k-means++ draws; more than 1,024 of them, and on a GPU, several at once.

    A point's chance is its squared distance to the nearest that was drawn before. With thousands of clusters k-means
    itself takes less time than to look at all points after each draw.
    """
    device, closest = searcher(faiss, points.device)
    if n_clusters <= _ONE_BY_ONE and device.type == "cpu":
        return _one_by_one(points, n_clusters, seed, faiss)
    points = points.to(device).contiguous()
    draws = np.random.default_rng(seed)
    chosen = drawn = draws.integers(len(points), size=1)
    apart = torch.full((len(points),), torch.inf, device=device)
    while len(chosen) < n_clusters:
        found = closest(points, points[torch.from_numpy(drawn).to(device)], 1)[0][:, 0]
        apart = torch.minimum(apart, found).clamp(min=torch.finfo(torch.float32).tiny)
        apart[torch.from_numpy(chosen).to(device)] = 0
        count = max(1, min(len(chosen), n_clusters - len(chosen)) // _AT_ONCE)
        chances = apart.double().numpy(force=True)
        drawn = draws.choice(len(points), count, replace=False, p=chances / chances.sum(), shuffle=False)
        chosen = np.concatenate([chosen, drawn])
    return points[torch.from_numpy(chosen).to(device)]


def _one_by_one(
    points: Float32[Tensor, "n d"], n_clusters: int, seed: int, faiss: ModuleType | None
) -> Float32[Tensor, "k d"]:
    held = np.ascontiguousarray(points.numpy(force=True))
    if faiss is None:
        return torch.from_numpy(kmeans_plusplus(held, n_clusters, random_state=seed)[0])
    draws = faiss.Kmeans(
        held.shape[1],
        n_clusters,
        niter=0,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,  # or C prints a warning
        max_points_per_centroid=len(held),  # or it draws from 256 points a centroid without a word
    )
    draws.train(held)
    return torch.from_numpy(draws.centroids)
