"""Where k-means starts: at points far from each other."""

from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss.chunking import HELD
from udmlss.lloyd import Known, lloyd, nothing_known
from udmlss.searching import Found, searcher

_SAMPLED = 64  # points a cluster from which the start is made: with 1,000 clusters of 10,000,000 points, 1 in 156
_CANDIDATES = 1024  # most points that are drawn between two looks at all points
_TINY = torch.finfo(torch.float32).tiny  # least chance: where fewer points differ than are drawn, equal ones fill up


def start_of(
    points: Float[Tensor, "n d"], n_clusters: int, n_iterations: int, seed: int, faiss: ModuleType | None
) -> tuple[Float32[Tensor, "k d"], Known | None]:
    """Return points far apart and what is known of all points then.

    Where memory does not hold all points: the centroids of k-means on a sample, and nothing.
    """
    n, d = points.shape
    if points.numel() <= HELD:
        return far_apart(points.float(), n_clusters, seed, faiss)
    size = max(n_clusters, min(_SAMPLED * n_clusters, HELD // d))
    rows = np.sort(np.random.default_rng(seed).choice(n, size, replace=False, shuffle=False))
    sample = points[torch.from_numpy(rows).to(points.device)].float()
    drawn, known = far_apart(sample, n_clusters, seed, faiss)
    return lloyd(sample, drawn, n_iterations, faiss, known)[1], None


def far_apart(
    points: Float32[Tensor, "n d"], n_clusters: int, seed: int, faiss: ModuleType | None
) -> tuple[Float32[Tensor, "k d"], Known]:
    """Return points that k-means++ draws, each by its squared distance to the nearest drawn before, and what is known.

    To look at all points after each draw would take longer than k-means itself. So many candidates are drawn by one
    look, and each is taken with the share of its chance that those taken since have left: as if drawn one by one.

    References:
        k-means++: The Advantages of Careful Seeding. Arthur, Vassilvitskii. 2007.
        https://dl.acm.org/doi/10.5555/1283383.1283494
        Fast and Accurate k-means++ via Rejection Sampling. Cohen-Addad et al. 2020. https://arxiv.org/abs/2012.11891
    """
    device, closest = searcher(faiss, points.device)
    points = points.to(device).contiguous()
    random = np.random.default_rng(seed)
    known = nothing_known(len(points), device)
    chosen = drawn = torch.from_numpy(random.integers(len(points), size=1)).to(device)
    _look(known, closest(points, points[drawn], 1), begin=0)
    while len(chosen) < n_clusters:
        chances = known.nearest.clamp(min=_TINY)
        chances[chosen] = 0
        drawn = _draw(points, chances, min(len(chosen), _CANDIDATES), random)[: n_clusters - len(chosen)]
        _look(known, closest(points, points[drawn], 1), begin=len(chosen))
        chosen = torch.cat([chosen, drawn])
    known.others = known.nearest.clone()
    return points[chosen], known


def _look(known: Known, found: Found, begin: int) -> None:
    """Bring up to date which of the points drawn is nearest, those of the last look counting from `begin`."""
    distances, places = found[0][:, 0], found[1][:, 0] + begin
    nearer = distances < known.nearest
    known.labels, known.nearest = places.where(nearer, known.labels), distances.where(nearer, known.nearest)


def _draw(
    points: Float32[Tensor, "n d"], chances: Float32[Tensor, " n"], count: int, random: np.random.Generator
) -> Int64[Tensor, " m"]:
    """Return which of `count` candidates are taken, at least one, in the order of their drawing."""
    held = chances.double().numpy(force=True)
    candidates = random.choice(len(points), count, p=held / held.sum())
    drawn = points[torch.from_numpy(candidates).to(points.device)].cpu()
    between = torch.cdist(drawn, drawn).square().clamp(min=_TINY).numpy()
    between[candidates == candidates[:, None]] = 0  # none is drawn twice
    left, taken = held[candidates], []
    bars = random.random(count) * left
    for each in range(count):
        if bars[each] < left[each]:
            taken.append(each)
            left = np.minimum(left, between[each])
    return torch.from_numpy(candidates[taken]).to(points.device)
