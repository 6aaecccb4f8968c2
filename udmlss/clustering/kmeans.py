"""k-means without empty clusters."""

import warnings
from functools import cache
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss._checks import _EQUAL, as_labels, check_embeddings, check_integer, check_not_collapsed, value_error
from udmlss._chunks import group_means, row_slices
from udmlss.clustering.kmeans_plusplus import initial_centers
from udmlss.clustering.lloyd import lloyd
from udmlss.neighbors.backends import import_faiss
from udmlss.types import Labels


def k_means(
    embeddings: Float[Tensor, "n d"],
    n_clusters: int,
    *,
    start: Float[Tensor, "j d"] | None = None,
    max_iter: int = 25,
    seed: int = 0,
) -> Int64[Tensor, " n"]:
    """Cluster embeddings by Lloyd's k-means, with all embeddings and without empty clusters.

    The search for the nearest centers runs in faiss, on a GPU if both faiss and PyTorch have one. Without faiss it
    runs in PyTorch for embeddings on a GPU and in scikit-learn for other embeddings. Embeddings are read one slice at
    a time, so that they may be mapped from a file. Iterations end when no embedding changes its cluster. A cluster
    that is empty at the end gets the embedding farthest from its center.

    Args:
        embeddings: Embeddings of any floating type; distances are Euclidean.
        n_clusters: Number of clusters k, at least 2 and at most n.
        start: Initial centers, at most k; randomly sampled embeddings are added up to k. None chooses the centers by
            k-means++. Of embeddings with more than 2**28 numbers (1 GiB in float32), k-means++ then sees a sample of
            64 per cluster, and k-means on this sample computes the initial centers.
        max_iter: Maximum number of iterations.
        seed: Seed of the initial centers.

    Returns:
        The cluster of each embedding in 0..k-1, on the CPU. If fewer than k embeddings differ, there are fewer
        clusters and a warning.

    Raises:
        ValueError: Embeddings are not finite, are all equal, or are fewer than `n_clusters`.

    References:
        k-means++: The Advantages of Careful Seeding. Arthur, Vassilvitskii. 2007.
        https://dl.acm.org/doi/10.5555/1283383.1283494. The released UDML-SS code starts from randomly sampled rows.

    Example:
        >>> from udmlss.clustering import k_means
        >>> k_means(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2).bincount()
        tensor([2, 2])
    """
    check_embeddings(embeddings)
    check_count(n_clusters, len(embeddings))
    check_integer("max_iter", max_iter, 0)
    check_integer("seed", seed, 0)
    check_not_collapsed(embeddings)
    if start is not None:
        check_embeddings(start, "start")
    return cluster_rows(embeddings.detach(), int(n_clusters), start=start, max_iter=int(max_iter), seed=int(seed))


def cluster_rows(
    points: Float[Tensor, "n d"], n_clusters: int, *, start: Float[Tensor, "j d"] | None, max_iter: int, seed: int
) -> Int64[Tensor, " n"]:
    """Run `k_means` on embeddings that were checked."""
    faiss = _import_faiss(points.device)
    if start is None:
        centers, assignment = initial_centers(points, n_clusters, max_iter, seed, faiss)
    else:
        centers, assignment = _add_random_rows(start, points, n_clusters, seed), None
    labels, _ = lloyd(points, centers, max_iter, faiss, assignment)
    return _without_empty_clusters(points, labels, n_clusters)


def check_count(n_clusters: int, n: int) -> None:
    """Raise an error unless the number of clusters is an integer in 2..n, where n is the number of images."""
    check_integer("n_clusters", n_clusters, 2)
    if n_clusters > n:
        raise value_error(f"`n_clusters={n_clusters}` needs at least {n_clusters} images", n, "Lower it, or add images")


def cluster_means(embeddings: Float[Tensor, "n d"], labels: Labels, n_clusters: int) -> Float32[Tensor, "k d"]:
    """Compute the mean embedding of each cluster.

    Args:
        embeddings: Embeddings of any floating type, in memory or mapped from a file.
        labels: Cluster of each embedding in 0..k-1; a negative label means that the embedding is unassigned.
        n_clusters: Number of clusters k.

    Returns:
        The means (k, d), on the device of the embeddings; 0 for an empty cluster.

    Raises:
        ValueError: Labels are not one per embedding, or are not below `n_clusters`.
    """
    check_integer("n_clusters", n_clusters, 1)
    labels = as_labels(labels, len(embeddings))
    if len(labels) and int(labels.max()) >= n_clusters:
        raise value_error(f"`labels` must be below `n_clusters={n_clusters}`", int(labels.max()), "Raise `n_clusters`")
    return group_means(embeddings, labels, n_clusters)


def _import_faiss(device: torch.device) -> ModuleType | None:
    faiss = import_faiss()
    if faiss is None and device.type == "cpu":
        _warn_of_missing_faiss()
    return faiss


@cache  # Python's own filter warns again after any use of `warnings.catch_warnings`
def _warn_of_missing_faiss() -> None:
    warnings.warn(
        'k-means runs in scikit-learn, which is slower: faiss is not installed. `pip install "udmlss[faiss-cpu]"`',
        stacklevel=4,
    )


def _add_random_rows(start: Tensor, points: Float[Tensor, "n d"], k: int, seed: int) -> Float32[Tensor, "k d"]:
    """Return k initial centers: those of `start`, and randomly sampled points."""
    if len(start) > k or start.shape[1] != points.shape[1]:
        found, most = tuple(start.shape), f"({k}, {points.shape[1]})"
        raise value_error(f"`start` must have shape {most} or fewer rows", found, "Pass the centers of these clusters")
    sampled = torch.from_numpy(np.random.default_rng(seed).permutation(len(points))[: k - len(start)])
    return torch.cat([start.detach().cpu().float(), points[sampled.to(points.device)].cpu().float()])


def _without_empty_clusters(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], k: int) -> Int64[Tensor, " n"]:
    sizes = labels.bincount(minlength=k)
    if sizes.all():
        return labels
    labels = _fill_empty_clusters(points, labels, sizes)
    used, compact = np.unique(labels.numpy(), return_inverse=True)
    if len(used) < k:
        warnings.warn(
            f"`n_clusters={k}` needs {k} embeddings that differ, got {len(used)}. There are {len(used)} clusters.",
            stacklevel=3,
        )
    return torch.from_numpy(compact)


def _fill_empty_clusters(
    points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], sizes: Int64[Tensor, " k"]
) -> Int64[Tensor, " n"]:
    """Move the points that are farthest from their centers, each to one of the empty clusters."""
    means = group_means(points, labels, len(sizes)).numpy(force=True)
    distances, longest = np.empty(len(points), dtype=np.float32), 0.0
    for rows in row_slices(points):
        part = points[rows].float().numpy(force=True)
        distances[rows] = np.linalg.norm(part - means[labels[rows].numpy()], axis=1)
        longest = max(longest, np.linalg.norm(part, axis=1).max())
    labels, sizes = labels.clone(), sizes.clone()
    empty = (sizes == 0).nonzero().flatten().tolist()
    for point in np.argsort(-distances, kind="stable"):
        if not empty or distances[point] <= _EQUAL * longest:
            break
        if sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop()
    return labels
