"""Where k-means starts: at points far from each other."""

from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss._chunks import IN_MEMORY
from udmlss.clustering.lloyd import Known, lloyd, nothing_known
from udmlss.neighbors.backends import Neighbors, euclidean_search

_SAMPLED = 64  # points a cluster from which the start is made: with 1,000 clusters of 10,000,000 points, 1 in 156
_CANDIDATES = 1024  # most points that are looked at more closely after a look at all
_LEFT = 0.6  # share of their chance that these have left, on average, when all points are looked at again
_GREEDY = 1024  # most clusters for which so many candidates tell which of a few points is the best to draw
_ROUNDING = 1e-6  # share of the largest squared distance to the first point drawn that is rounding


def initial_centers(
    points: Float[Tensor, "n d"], n_clusters: int, max_iter: int, seed: int, faiss: ModuleType | None
) -> tuple[Float32[Tensor, "k d"], Known | None]:
    """Return points far apart and what is known of all points then.

    Where memory does not hold all points: the centroids of k-means on a sample, and nothing.
    """
    n, d = points.shape
    if points.numel() <= IN_MEMORY:
        return kmeans_plusplus(points.float(), n_clusters, seed, faiss)
    size = max(n_clusters, min(_SAMPLED * n_clusters, IN_MEMORY // d))
    rows = np.sort(np.random.default_rng(seed).choice(n, size, replace=False, shuffle=False))
    sample = points[torch.from_numpy(rows).to(points.device)].float()
    drawn, known = kmeans_plusplus(sample, n_clusters, seed, faiss)
    return lloyd(sample, drawn, max_iter, faiss, known)[1], None


def kmeans_plusplus(
    points: Float32[Tensor, "n d"], n_clusters: int, seed: int, faiss: ModuleType | None
) -> tuple[Float32[Tensor, "k d"], Known]:
    """Return points that k-means++ draws, each by its squared distance to the nearest drawn before, and what is known.

    To look at all points after each draw would take longer than k-means itself. So candidates are drawn by one look,
    and from them points, one after the other, by what those before have left of their chance. Of up to 1,024 clusters
    each is the best of a few, as in scikit-learn: the one that leaves the candidates the least chance.

    References:
        k-means++: The Advantages of Careful Seeding. Arthur, Vassilvitskii. 2007, with its greedy variant.
        https://dl.acm.org/doi/10.5555/1283383.1283494
    """
    device, closest = euclidean_search(faiss, points.device)
    points = points.to(device).contiguous()
    random = np.random.default_rng(seed)
    n_trials = 2 + int(np.log(n_clusters)) if n_clusters <= _GREEDY else 1
    known = nothing_known(len(points), device)
    chosen = drawn = torch.from_numpy(random.integers(len(points), size=1)).to(device)
    _look(known, closest(points, points[drawn], 1), begin=0)
    least = max(_ROUNDING * float(known.nearest.max()), torch.finfo(torch.float32).tiny)  # equal points fill up
    while len(chosen) < n_clusters:
        chances = known.nearest.clamp(min=least)
        chances[chosen] = 0
        candidates = _candidates(chances, random)
        kept = _kept(points[candidates], candidates, chances[candidates], least)
        drawn = candidates[_drawn(kept, n_clusters - len(chosen), n_trials, random).to(device)]
        _look(known, closest(points, points[drawn], 1), begin=len(chosen))
        chosen = torch.cat([chosen, drawn])
    known.others = known.nearest.clone()
    return points[chosen], known


def _look(known: Known, found: Neighbors, begin: int) -> None:
    """Bring up to date which of the points drawn is nearest, those of the last look counting from `begin`."""
    distances, places = found[0][:, 0], found[1][:, 0] + begin
    nearer = distances < known.nearest
    known.labels, known.nearest = places.where(nearer, known.labels), distances.where(nearer, known.nearest)


def _candidates(chances: Float32[Tensor, " n"], random: np.random.Generator) -> Int64[Tensor, " m"]:
    held = chances.double().numpy(force=True)
    drawn = random.choice(len(held), min(_CANDIDATES, len(held)), p=held / held.sum())
    return torch.from_numpy(drawn).to(chances.device)


def _kept(
    points: Float32[Tensor, "m d"], candidates: Int64[Tensor, " m"], chances: Float32[Tensor, " m"], least: float
) -> Float32[Tensor, "m m"]:
    """Return the share of its chance that the second candidate keeps once the first is drawn."""
    points = (points - points.mean(dim=0)).cpu()  # rounding grows with the distance to the origin
    between = torch.cdist(points, points).square().clamp(min=least)
    between[(candidates == candidates.unsqueeze(1)).cpu()] = 0  # none is drawn twice
    return (between / chances.cpu()).clamp(max=1)


def _drawn(kept: Float32[Tensor, "m m"], most: int, n_trials: int, random: np.random.Generator) -> Int64[Tensor, " j"]:
    """Return which candidates are drawn, at least one, each the best of a few trials."""
    shares = kept.numpy()
    left, drawn = np.ones(len(shares)), list[int]()
    while len(drawn) < most and left.mean() > _LEFT:
        trials = random.choice(len(left), n_trials, p=left / left.sum())
        after = np.minimum(left, shares[trials])
        best = after.sum(axis=1).argmin()
        drawn.append(trials[best])
        left = after[best]
    return torch.from_numpy(np.array(drawn))
