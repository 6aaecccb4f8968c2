"""Initial centers of k-means by k-means++, with few searches of all points."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from udmlss._chunks import IN_MEMORY
from udmlss.clustering.kmeans.lloyd import Assignment, lloyd, unassigned
from udmlss.clustering.kmeans.points import Points, read
from udmlss.neighbors.backends import euclidean_search

Seed = int | tuple[int, int]  # of a generator of NumPy

_SAMPLE_PER_CLUSTER = 64  # points per cluster of the sample; for 1,000 clusters of 10,000,000 points, 1 in 156
_MAX_CANDIDATES = 1024  # candidates that are sampled after each search of all points
_RESAMPLE_BELOW = 0.6  # candidates are sampled again once their mean remaining weight is below this fraction
_MAX_GREEDY_CLUSTERS = 1024  # with more clusters, the candidates are too few to compare several choices
_ROUNDING = 1e-6  # fraction of the largest squared distance to the first center below which distances are rounding


def initial_centers(
    points: Points, n_clusters: int, max_iter: int, seed: Seed
) -> tuple[Float[Tensor, "k d"], Assignment | None]:
    """Compute initial centers, and the assignment of all points to them if it is known.

    Points of more than `IN_MEMORY` numbers are not all read: the centers are those of k-means on a sample, and the
    assignment is None.
    """
    n, d = points.shape
    if points.numel() <= IN_MEMORY:
        return kmeans_plusplus(read(points, slice(None)), n_clusters, seed)
    size = max(n_clusters, min(_SAMPLE_PER_CLUSTER * n_clusters, IN_MEMORY // d))
    rows = np.sort(np.random.default_rng(seed).choice(n, size, replace=False, shuffle=False))
    sample = read(points, torch.from_numpy(rows).to(points.device))
    centers, assignment = kmeans_plusplus(sample, n_clusters, seed)
    return lloyd(sample, centers, max_iter, assignment)[1], None


def kmeans_plusplus(
    points: Float[Tensor, "n d"], n_clusters: int, seed: Seed
) -> tuple[Float[Tensor, "k d"], Assignment]:
    """Choose points as centers by k-means++, and assign all points to them.

    k-means++ samples each center with a probability proportional to its squared distance to the nearest center so far.
    A search of all points after each center would take longer than k-means itself. Each search of all points is
    therefore followed by sampling 1,024 candidates, and several centers are sampled from these by the weight that they
    retain. Up to 1,024 clusters, each center is the best of a few samples, as in scikit-learn: the one that leaves the
    smallest total weight.

    Returns:
        The centers (k, d), which are different rows of `points`, and the assignment of the points.

    References:
        k-means++: The Advantages of Careful Seeding. Arthur, Vassilvitskii. 2007, with its greedy variant.
        https://dl.acm.org/doi/10.5555/1283383.1283494
    """
    device, search = euclidean_search(points.device, points.dtype)
    points = points.to(device).contiguous()
    rng = np.random.default_rng(seed)
    n_trials = 2 + int(np.log(n_clusters)) if n_clusters <= _MAX_GREEDY_CLUSTERS else 1
    assignment = unassigned(len(points), device, points.dtype)
    chosen = new = torch.from_numpy(rng.integers(len(points), size=1)).to(device)
    _assign_to_new(assignment, *search(points, points[new], 1), first_new=0)
    # points that equal a center have a small weight rather than none, for the case that no other points are left
    rounding = _ROUNDING if points.dtype == torch.float32 else 0.0
    least = max(rounding * float(assignment.distances.max()), torch.finfo(points.dtype).tiny)
    while len(chosen) < n_clusters:
        weights = assignment.distances.clamp(min=least)
        weights[chosen] = 0
        candidates = _sample_candidates(weights, rng)
        remaining = _remaining_weights(points[candidates], candidates, weights[candidates], least)
        new = candidates[_choose_candidates(remaining, n_clusters - len(chosen), n_trials, rng).to(device)]
        _assign_to_new(assignment, *search(points, points[new], 1), first_new=len(chosen))
        chosen = torch.cat([chosen, new])
    assignment.lower_bounds = assignment.distances.clone()
    return points[chosen], assignment


def _assign_to_new(
    assignment: Assignment, distances: Float[Tensor, "n 1"], indices: Int64[Tensor, "n 1"], first_new: int
) -> None:
    """Update the assignment by a search of new centers, whose indices count from `first_new`."""
    distances, labels = distances[:, 0], indices[:, 0] + first_new
    nearer = distances < assignment.distances
    assignment.labels = labels.where(nearer, assignment.labels)
    assignment.distances = distances.where(nearer, assignment.distances)


def _sample_candidates(weights: Float[Tensor, " n"], rng: np.random.Generator) -> Int64[Tensor, " m"]:
    values = weights.double().numpy(force=True)
    candidates = rng.choice(len(values), min(_MAX_CANDIDATES, len(values)), p=values / values.sum())
    return torch.from_numpy(candidates).to(weights.device)


def _remaining_weights(
    points: Float[Tensor, "m d"], candidates: Int64[Tensor, " m"], weights: Float[Tensor, " m"], least: float
) -> Float[Tensor, "m m"]:
    """Return the fraction of its weight that the second candidate retains if the first one becomes a center."""
    points = (points - points.mean(dim=0)).cpu()  # rounding grows with the distance from the origin
    # differences are exact but slow; float32 is for points whose products are accurate enough
    mode = "use_mm_for_euclid_dist_if_necessary" if points.dtype == torch.float32 else "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(points, points, compute_mode=mode).square().clamp(min=least)
    distances[(candidates == candidates.unsqueeze(1)).cpu()] = 0  # a point must not be chosen twice
    return (distances / weights.cpu()).clamp(max=1)


def _choose_candidates(
    remaining: Float[Tensor, "m m"], most: int, n_trials: int, rng: np.random.Generator
) -> Int64[Tensor, " j"]:
    """Return the indices of the candidates that become centers: at least one, and at most `most`."""
    fractions = remaining.numpy()
    weights, chosen = np.ones(len(fractions)), list[int]()
    while len(chosen) < most and weights.mean() > _RESAMPLE_BELOW:
        trials = rng.choice(len(weights), n_trials, p=weights / weights.sum())
        after = np.minimum(weights, fractions[trials])
        best = after.sum(axis=1).argmin()
        chosen.append(trials[best])
        weights = after[best]
    return torch.from_numpy(np.array(chosen))
