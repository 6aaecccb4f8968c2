"""k-means without empty clusters."""

import warnings
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss._checks import as_labels, check_distinct, check_embeddings, check_integer, value_error
from udmlss._chunks import IN_MEMORY, ColumnRange, group_means, row_slices, with_float64
from udmlss.clustering.kmeans.initial_centers import Seed, initial_centers
from udmlss.clustering.kmeans.lloyd import lloyd
from udmlss.clustering.kmeans.points import Points, ScaledPoints, differ_from_first, first_members, read
from udmlss.neighbors.backends import full_precision
from udmlss.types import Labels

_SMALLEST_INERTIA = 2.0**-14  # mean squared distance to the centers, as a fraction of the largest squared norm
_EXACT_STARTS = 4  # k-means++ leaves one of several distant groups without a center in about 1 of 6 starts
_EQUAL = 1e-5  # fraction of the largest norm below which distances may be rounding in float32


def k_means(
    embeddings: Float[Tensor, "n d"],
    n_clusters: int,
    *,
    start: Float[Tensor, "j d"] | None = None,
    max_iter: int = 25,
    seed: int = 0,
) -> Int64[Tensor, " n"]:
    """Cluster embeddings by Lloyd's k-means, with all embeddings and without empty clusters.

    The search for the nearest centers runs on the device of the embeddings, in PyTorch, or in faiss if the device is a
    GPU and faiss-gpu is installed. Embeddings are read one slice at a time, so that they may be mapped from a file.
    Iterations end when no embedding changes its cluster. A cluster that is empty at the end gets the embedding farthest
    from its center.

    Distances are computed in float32. If rounding errors could decide the result, for example because of an outlier,
    of distant groups or of very large or small numbers, k-means runs in float64 in PyTorch, from four starts. This
    takes many times as long.

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
    column_range = check_embeddings(embeddings)
    check_count(n_clusters, len(embeddings))
    check_integer("max_iter", max_iter, 0)
    check_integer("seed", seed, 0)
    check_distinct(column_range, len(embeddings))
    if start is not None:
        column_range = column_range.union(_check_start(start, n_clusters, embeddings.shape[1]))
    return cluster_rows(embeddings, column_range, int(n_clusters), start=start, max_iter=int(max_iter), seed=int(seed))


def cluster_rows(
    embeddings: Float[Tensor, "n d"],
    column_range: ColumnRange,
    n_clusters: int,
    *,
    start: Float[Tensor, "j d"] | None,
    max_iter: int,
    seed: int,
) -> Int64[Tensor, " n"]:
    """Return what `k_means` returns, for checked arguments and the range of the embeddings and the initial centers.

    Distances are computed in float32. If they would overflow or underflow, or if the clusters are so small that
    rounding decides, k-means runs in float64 with exact differences. It then takes the best of several starts, because
    one group without a center multiplies the objective if groups are small and distant.
    """
    matrix = with_float64(embeddings.detach())
    cluster = partial(_cluster, n_clusters=n_clusters, start=start, max_iter=max_iter)
    if not column_range.is_extreme:
        labels, inertia = cluster(matrix, seed=seed)
        if _is_accurate(matrix, labels, inertia):
            return _without_empty_clusters(matrix, labels, n_clusters)
    points = ScaledPoints.of(matrix, column_range)
    n_starts = _EXACT_STARTS if start is None and points.numel() <= IN_MEMORY else 1
    found = [cluster(points, seed=(seed, number) if number else seed) for number in range(n_starts)]
    labels, _ = min(found, key=lambda each: each[1])
    return _without_empty_clusters(matrix, labels, n_clusters)


def _cluster(
    points: Points, *, n_clusters: int, start: Tensor | None, max_iter: int, seed: Seed
) -> tuple[Int64[Tensor, " n"], float]:
    """Choose initial centers and run Lloyd's iterations; return the labels and the inertia."""
    with full_precision(points.device):
        if start is None:
            centers, assignment = initial_centers(points, n_clusters, max_iter, seed)
        else:
            centers, assignment = _add_random_rows(start, points, n_clusters, seed), None
        labels, _, inertia = lloyd(points, centers, max_iter, assignment)
    return labels, inertia


def _is_accurate(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], inertia: float) -> bool:
    """Return whether rounding in float32 is small compared with the inertia, or each cluster has equal points."""
    largest_norm = max(float(points[rows].float().norm(dim=1).max()) for rows in row_slices(points))
    return inertia > _SMALLEST_INERTIA * len(points) * largest_norm**2 or not differ_from_first(points, labels).any()


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
    column_range = check_embeddings(embeddings)
    check_integer("n_clusters", n_clusters, 1)
    labels = as_labels(labels, len(embeddings))
    if int(labels.max()) >= n_clusters:
        raise value_error(f"`labels` must be below `n_clusters={n_clusters}`", int(labels.max()), "Raise `n_clusters`")
    return group_means(embeddings.detach(), labels, int(n_clusters), column_range.sum_dtype)


def _check_start(start: Tensor, n_clusters: int, d: int) -> ColumnRange:
    """Raise an error unless `start` has at most k initial centers of d dimensions, and return its range."""
    column_range = check_embeddings(start, "start")
    if len(start) > n_clusters or start.shape[1] != d:
        found, most = tuple(start.shape), f"({n_clusters}, {d})"
        raise value_error(f"`start` must have shape {most} or fewer rows", found, "Pass the centers of these clusters")
    return column_range


def _add_random_rows(start: Float[Tensor, "j d"], points: Points, k: int, seed: Seed) -> Float[Tensor, "k d"]:
    """Return k initial centers: those of `start`, and randomly sampled points."""
    sampled = torch.from_numpy(np.random.default_rng(seed).permutation(len(points))[: k - len(start)])
    rows = read(points, sampled.to(points.device)).cpu()
    start = points.scaled(start) if isinstance(points, ScaledPoints) else start.float()
    return torch.cat([start.detach().cpu(), rows])


def _without_empty_clusters(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], k: int) -> Int64[Tensor, " n"]:
    if labels.bincount(minlength=k).all():
        return labels
    labels = _fill_empty_clusters(points, labels, k)
    if not labels.bincount(minlength=k).all():
        labels = _split_clusters(points, labels, k)
    used, compact = np.unique(labels.numpy(), return_inverse=True)
    if len(used) < k:
        warnings.warn(
            f"`n_clusters={k}` needs {k} embeddings that differ, got {len(used)}. There are {len(used)} clusters.",
            stacklevel=4,
        )
    return torch.from_numpy(compact)


def _fill_empty_clusters(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], k: int) -> Int64[Tensor, " n"]:
    """Move the points that are farthest from their centers, each to one of the empty clusters, if float32 shows it."""
    means = group_means(points, labels, k).numpy(force=True)
    distances, longest = np.empty(len(points), dtype=np.float32), 0.0
    for rows in row_slices(points):
        part = points[rows].float().numpy(force=True)
        distances[rows] = np.linalg.norm(part - means[labels[rows].numpy()], axis=1)
        longest = max(longest, np.linalg.norm(part, axis=1).max())
    labels, sizes = labels.clone(), labels.bincount(minlength=k)
    empty = (sizes == 0).nonzero().flatten().tolist()
    for point in np.argsort(-distances, kind="stable"):
        if not empty or distances[point] <= _EQUAL * longest:
            break
        if sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop()
    return labels


def _split_clusters(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], k: int) -> Int64[Tensor, " n"]:
    """Move points that differ, by however little, from the first point of their cluster to the empty clusters.

    Points that are equal move together, the points that are farthest from the first point of their cluster first.
    """
    others = differ_from_first(points, labels).nonzero().flatten()
    if not len(others):
        return labels
    empty = (labels.bincount(minlength=k) == 0).nonzero().flatten().tolist()
    rows, first = (points[i.to(points.device)].double() for i in (others, first_members(labels)[others]))
    values = torch.cat([labels[others].unsqueeze(1).to(rows), rows], dim=1)
    groups = values.unique(dim=0, return_inverse=True)[1]
    scale = torch.stack([rows.abs(), first.abs()]).amax().clamp(min=torch.finfo(torch.float64).tiny)
    distances = ((rows - first) / scale).norm(dim=1).cpu()
    labels, moved = labels.clone(), set[int]()
    for other in distances.argsort(descending=True, stable=True).tolist():
        if empty and int(groups[other]) not in moved:
            moved.add(int(groups[other]))
            labels[others[(groups == groups[other]).cpu()]] = empty.pop()
    return labels
