"""Embeddings to clusters: k-means, and what one round's clusters have to do with the last round's."""

import warnings
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from udmlss._checks import check_at_least, check_embeddings, refusal

_SAME = 1e-5  # rows closer than this share of their norm are equal to float32's rounding


def k_means(
    embeddings: Float[Tensor, "n d"],
    n_clusters: int,
    *,
    start: Float[Tensor, "j d"] | None = None,
    n_iterations: int = 25,
    seed: int = 0,
) -> Int64[Tensor, " n"]:
    """Assign each embedding to one of k clusters by Lloyd's k-means, on every row and with no cluster empty.

    Runs in faiss, or in scikit-learn where faiss is not installed. A cluster that ends empty is given the embedding
    farthest from its centroid. Only where fewer than k embeddings differ are there fewer clusters, with a warning.

    Args:
        embeddings: Points, compared by Euclidean distance.
        n_clusters: Number of clusters k, at least 2 and at most n.
        start: Up to k centroids to start from; random embeddings stand in for those not given. Without any,
            k-means++ draws embeddings far from each other, so that groups far apart are each begun in.
        n_iterations: Most iterations.
        seed: Seed of what is drawn at the start.

    Returns:
        The cluster of each embedding, 0..k-1, every one of them used.

    Raises:
        ValueError: Embeddings that are not finite, are all equal, or are fewer than k.

    References:
        k-means++: The Advantages of Careful Seeding. Arthur, Vassilvitskii. 2007.
        https://dl.acm.org/doi/10.5555/1283383.1283494. The released UDML-SS code starts from random rows.

    Example:
        >>> k_means(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2).bincount()
        tensor([2, 2])
    """
    check_embeddings(embeddings)
    check_count(n_clusters, len(embeddings))
    check_not_collapsed(embeddings)
    points = np.ascontiguousarray(embeddings.float().numpy(force=True))
    first = None if start is None else _filled(start, points, n_clusters, seed)
    try:
        assigned = _faiss_k_means(points, n_clusters, first, n_iterations, seed)
    except ModuleNotFoundError:
        _warn_of_missing_faiss()
        assigned = _sklearn_k_means(points, n_clusters, first, n_iterations, seed)
    return torch.from_numpy(_without_empty(points, assigned, n_clusters))


@cache  # Python's own once-per-line is forgotten whenever any code enters `warnings.catch_warnings`
def _warn_of_missing_faiss() -> None:
    warnings.warn(
        'k-means runs in scikit-learn, which is slower: faiss is not installed. `pip install "udmlss[faiss-cpu]"`',
        stacklevel=3,
    )


def check_count(n_clusters: int, n: int) -> None:
    """Refuse a number of clusters below 2 or above the number of images."""
    check_at_least("n_clusters", n_clusters, 2)
    if n_clusters > n:
        raise refusal(f"`n_clusters={n_clusters}` needs at least as many images", n, "Lower it, or add images")


def check_not_collapsed(embeddings: Float[Tensor, "n d"]) -> None:
    """Refuse embeddings that are all equal to rounding: nothing can be told apart."""
    spread = (embeddings - embeddings[0]).norm(dim=1).max()
    if spread <= _SAME * embeddings.norm(dim=1).max():
        raise refusal(
            "Clustering needs embeddings that differ",
            f"{len(embeddings)} equal rows, one cluster of sizes [{len(embeddings)}]: the model has collapsed",
            "Lower the learning rate, raise `n_clusters`, or look at whether the images themselves differ",
        )


def _filled(start: Tensor, points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.float32]:
    """Return k centroids to start from: those given, then random points."""
    check_embeddings(start, "start")
    if len(start) > k or start.shape[1] != points.shape[1]:
        found, most = tuple(start.shape), f"({k}, {points.shape[1]})"
        raise refusal(f"`start` must have shape {most} or fewer rows", found, "Pass the centroids of these clusters")
    drawn = points[np.random.default_rng(seed).permutation(len(points))[: k - len(start)]]
    return np.concatenate([start.float().numpy(force=True), drawn])


def _faiss_k_means(
    points: NDArray[np.float32], k: int, start: NDArray[np.float32] | None, n_iterations: int, seed: int
) -> NDArray[np.int64]:
    import faiss  # noqa: PLC0415 (optional)

    n, d = points.shape
    settings = faiss.Kmeans(
        d,
        k,
        niter=n_iterations,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,  # or C prints a warning
        max_points_per_centroid=n,  # or it trains on 256 points a centroid without a word
    )
    settings.train(points, init_centroids=start)
    labels: NDArray[np.int64] = settings.assign(points)[1]
    return labels


def _sklearn_k_means(
    points: NDArray[np.float32], k: int, start: NDArray[np.float32] | None, n_iterations: int, seed: int
) -> NDArray[np.int64]:
    init = "k-means++" if start is None else start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than k: said by _without_empty
        labels = KMeans(k, init=init, n_init=1, max_iter=n_iterations, random_state=seed).fit_predict(points)
    return np.asarray(labels, dtype=np.int64)


def _without_empty(points: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    sizes = np.bincount(labels, minlength=k)
    if sizes.all():
        return labels
    labels = _fill_empty(points, labels, sizes)
    used, compact = np.unique(labels, return_inverse=True)
    if len(used) < k:
        warnings.warn(
            f"`n_clusters={k}` needs as many embeddings that differ; going on with {len(used)} clusters, "
            "which is how many could be told apart.",
            stacklevel=3,
        )
    return np.asarray(compact, dtype=np.int64)


def _fill_empty(points: NDArray[np.float32], labels: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move the points farthest from their centroids, each into an empty cluster of its own."""
    means = cluster_means(torch.from_numpy(points), torch.from_numpy(labels), len(sizes)).numpy()
    distance = np.linalg.norm(points - means[labels], axis=1)
    far = _SAME * np.linalg.norm(points, axis=1).max()
    labels, sizes = labels.copy(), sizes.copy()
    empty = list(np.flatnonzero(sizes == 0))
    for point in np.argsort(-distance, kind="stable"):
        if not empty or distance[point] <= far:
            break
        if sizes[labels[point]] > 1:
            sizes[labels[point]] -= 1
            labels[point] = empty.pop()
    return labels


def cluster_means(
    embeddings: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], n_clusters: int
) -> Float32[Tensor, "k d"]:
    """Return the mean embedding of each cluster; an embedding labelled -1 counts nowhere."""
    kept = labels >= 0
    labels, embeddings = labels[kept], embeddings[kept].float()
    sums = embeddings.new_zeros(n_clusters, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / labels.bincount(minlength=n_clusters).clamp(min=1).unsqueeze(1)


def match_ids(labels: Int64[Tensor, " n"], previous: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Rename clusters so that each keeps the id of the previous cluster it shares most images with.

    The renaming is the one that maximises the number of images whose id stays (Kuhn 1955, on the table of counts),
    so a change of label means a change of mind and not of name. Ids stay 0..k-1; -1 stays -1.
    """
    k, k_previous = int(labels.max()) + 1, int(previous.max()) + 1
    both = (labels >= 0) & (previous >= 0)
    pairs = labels[both] * k_previous + previous[both]
    shared = pairs.bincount(minlength=k * k_previous).view(k, k_previous)[:, :k].numpy()
    new, old = linear_sum_assignment(shared, maximize=True)
    kept = shared[new, old] > 0
    ids = np.full(k + 1, -1)  # the last place is where -1 looks
    ids[new[kept]] = old[kept]
    ids[:k][ids[:k] < 0] = np.setdiff1d(np.arange(k), old[kept])
    return torch.from_numpy(ids)[labels]


def agreement(labels: Int64[Tensor, " n"], previous: Int64[Tensor, " n"]) -> float:
    """Return the adjusted Rand index of two labelings over the images both have in a cluster.

    1 for equal clusters, 0 for what chance gives whatever the number of clusters (unlike NMI, which rises with it).

    References:
        Comparing partitions. Hubert, Arabie. 1985. https://doi.org/10.1007/BF01908075
    """
    both = (labels >= 0) & (previous >= 0)
    return float(adjusted_rand_score(previous[both].numpy(), labels[both].numpy()))
