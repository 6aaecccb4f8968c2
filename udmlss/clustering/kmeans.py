"""Embeddings to clusters: k-means, and what one round's clusters have to do with the last round's."""

import warnings
from functools import cache
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss._checks import _EQUAL, check_embeddings, check_integer, check_not_collapsed, check_number, value_error
from udmlss._chunks import row_slices
from udmlss.clustering.kmeans_plusplus import initial_centers
from udmlss.clustering.lloyd import lloyd
from udmlss.neighbors.backends import import_faiss

SEEDS = 2**32  # scikit-learn takes so many


def k_means(
    embeddings: Float[Tensor, "n d"],
    n_clusters: int,
    *,
    start: Float[Tensor, "j d"] | None = None,
    max_iter: int = 25,
    seed: int = 0,
) -> Int64[Tensor, " n"]:
    """Assign each embedding to one of k clusters by Lloyd's k-means, on every row and with no cluster empty.

    Runs in faiss, on a GPU where faiss and PyTorch both have it; without faiss-gpu in PyTorch for embeddings on a GPU,
    and without faiss in scikit-learn for others. Embeddings are read a part at a time, of any floating type, in
    memory or mapped from a file. Iterations end when no embedding moves. A cluster that ends empty is given the
    embedding farthest from its centroid. Only where fewer than k embeddings differ are there fewer clusters, with a
    warning.

    Args:
        embeddings: Points, compared by Euclidean distance.
        n_clusters: Number of clusters k, at least 2 and at most n.
        start: Up to k centroids to start from; random embeddings stand in for those not given. Without any,
            k-means++ draws embeddings far from each other, so that groups far apart are each begun in. Of more than
            2**28 numbers (1 GiB of float32) it draws from a sample of 64 embeddings per cluster, and k-means starts
            from the centroids of k-means on these.
        max_iter: Most iterations.
        seed: Seed of what is drawn at the start, from 0 and below 2**32.

    Returns:
        The cluster of each embedding, 0..k-1, every one of them used, on the CPU.

    Raises:
        ValueError: Embeddings that are not finite, are all equal, or are fewer than k; another seed.

    References:
        k-means++: The Advantages of Careful Seeding. Arthur, Vassilvitskii. 2007.
        https://dl.acm.org/doi/10.5555/1283383.1283494. The released UDML-SS code starts from random rows.

    Example:
        >>> k_means(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2).bincount()
        tensor([2, 2])
    """
    check_embeddings(embeddings)
    check_count(n_clusters, len(embeddings))
    check_seed(seed)
    check_not_collapsed(embeddings)
    points, faiss = embeddings.detach(), _import_faiss(embeddings.device)
    if start is None:
        first, known = initial_centers(points, n_clusters, max_iter, seed, faiss)
    else:
        first, known = _filled(start, points, n_clusters, seed), None
    labels, _ = lloyd(points, first, max_iter, faiss, known)
    return _without_empty(points, labels, n_clusters)


def _import_faiss(device: torch.device) -> ModuleType | None:
    faiss = import_faiss()
    if faiss is None and device.type == "cpu":
        _warn_of_missing_faiss()
    return faiss


@cache  # Python's own once-per-line is forgotten whenever any code enters `warnings.catch_warnings`
def _warn_of_missing_faiss() -> None:
    warnings.warn(
        'k-means runs in scikit-learn, which is slower: faiss is not installed. `pip install "udmlss[faiss-cpu]"`',
        stacklevel=4,
    )


def check_count(n_clusters: int, n: int) -> None:
    """Refuse a number of clusters below 2 or above the number of images."""
    check_integer("n_clusters", n_clusters, 2)
    if n_clusters > n:
        raise value_error(f"`n_clusters={n_clusters}` needs at least as many images", n, "Lower it, or add images")


def check_seed(seed: int) -> None:
    """Refuse a seed that scikit-learn, for PCA, would not take."""
    check_number("seed", seed, 0, SEEDS - 1)


def _filled(start: Tensor, points: Float[Tensor, "n d"], k: int, seed: int) -> Float32[Tensor, "k d"]:
    """Return k centroids to start from: those given, then random points."""
    check_embeddings(start, "start")
    if len(start) > k or start.shape[1] != points.shape[1]:
        found, most = tuple(start.shape), f"({k}, {points.shape[1]})"
        raise value_error(
            f"`start` must have shape {most} or fewer rows", found, "Pass the centroids of these clusters"
        )
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(len(points))[: k - len(start)])
    return torch.cat([start.detach().cpu().float(), points[drawn.to(points.device)].cpu().float()])


def _without_empty(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], k: int) -> Int64[Tensor, " n"]:
    sizes = labels.bincount(minlength=k)
    if sizes.all():
        return labels
    labels = _fill_empty(points, labels, sizes)
    used, compact = np.unique(labels.numpy(), return_inverse=True)
    if len(used) < k:
        warnings.warn(
            f"`n_clusters={k}` needs as many embeddings that differ; going on with {len(used)} clusters, "
            "which is how many could be told apart.",
            stacklevel=3,
        )
    return torch.from_numpy(compact)


def _fill_empty(
    points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], sizes: Int64[Tensor, " k"]
) -> Int64[Tensor, " n"]:
    """Move the points farthest from their centroids, each into an empty cluster of its own."""
    means = cluster_means(points, labels, len(sizes)).numpy(force=True)
    distance, longest = np.empty(len(points), dtype=np.float32), 0.0
    for rows in row_slices(points):
        part = points[rows].float().numpy(force=True)
        distance[rows] = np.linalg.norm(part - means[labels[rows].numpy()], axis=1)
        longest = max(longest, np.linalg.norm(part, axis=1).max())
    labels, sizes = labels.clone(), sizes.clone()
    empty = (sizes == 0).nonzero().flatten().tolist()
    for point in np.argsort(-distance, kind="stable"):
        if not empty or distance[point] <= _EQUAL * longest:
            break
        if sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop()
    return labels


def cluster_means(
    embeddings: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], n_clusters: int
) -> Float32[Tensor, "k d"]:
    """Return the mean embedding of each cluster; an embedding labelled -1 counts nowhere."""
    sums = embeddings.new_zeros(n_clusters, embeddings.shape[1], dtype=torch.float64)
    labels = labels.to(embeddings.device)
    for rows in row_slices(embeddings):
        kept = labels[rows] >= 0
        part = embeddings[rows][kept].float()
        sums += torch.zeros_like(sums, dtype=torch.float32).index_add_(0, labels[rows][kept], part)
    return (sums / labels[labels >= 0].bincount(minlength=n_clusters).clamp(min=1).unsqueeze(1)).float()
