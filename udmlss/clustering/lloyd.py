"""Lloyd's k-means part by part: for a few rows, for more than memory holds, and for a GPU."""

from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from udmlss._chunks import row_slices
from udmlss.neighbors.backends import Search, euclidean_search

_APART = 1 / 1024  # share by which the halves of a split cluster start from its centroid, as in faiss


@dataclass
class Known:
    """What is known of points: the centroid nearest to each, and two squared distances."""

    labels: Int64[Tensor, " n"]  # -1 before the first look
    nearest: Float32[Tensor, " n"]  # to the point's centroid
    others: Float32[Tensor, " n"]  # no other centroid is nearer than this

    def __getitem__(self, rows: slice | Tensor) -> "Known":
        return Known(self.labels[rows], self.nearest[rows], self.others[rows])

    def __setitem__(self, rows: slice | Tensor, new: "Known") -> None:
        self.labels[rows], self.nearest[rows], self.others[rows] = new.labels, new.nearest, new.others


@dataclass
class _Sums:
    """The sum of the points of each cluster, in float64, and in whose sum each point is."""

    of: Float64[Tensor, "k d"]
    holding: Int64[Tensor, " n"]  # -1 for none

    def hold(self, rows: slice, points: Float32[Tensor, "c d"], labels: Int64[Tensor, " c"]) -> int:
        """Put points into the sums of these clusters, out of those they were in; return how many were not there."""
        changed = (labels != self.holding[rows]).nonzero().flatten()
        old, new = self.holding[rows][changed], labels[changed]
        self.of.index_add_(0, old[old >= 0], points[changed[old >= 0]].double(), alpha=-1)
        self.of.index_add_(0, new, points[changed].double())
        self.holding[rows] = labels
        return len(changed)


def nothing_known(n: int, device: torch.device) -> Known:
    """Return what is known of points before the first look."""
    far = torch.full((n,), torch.inf, dtype=torch.float32, device=device)
    return Known(torch.full((n,), -1, device=device), far, far.clone())


def lloyd(
    points: Float[Tensor, "n d"],
    centroids: Float[Tensor, "k d"],
    max_iter: int,
    faiss: ModuleType | None,
    known: Known | None = None,
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, "k d"]]:
    """Return the points' clusters after so many iterations, or fewer if no point moves any more, and their means.

    Each iteration reads the points once, a part at a time, and sums in float64 those that moved. Once most centroids
    stay where they are, a point is compared with those that moved, and with all only where another may be nearer:
    the clusters are those of comparing with all. An empty cluster takes half of one of the largest.

    Args:
        points: Points of any floating type, in memory, on a GPU or mapped from a file.
        centroids: Where to start; at least two.
        max_iter: Most iterations.
        faiss: Finds the nearest centroids, on a GPU if it can. Without it PyTorch does for points on a GPU, and
            scikit-learn for others.
        known: What is known of the points and these centroids; it saves the first look and is changed.
    """
    device, closest = euclidean_search(faiss, points.device)
    centroids = centroids.to(device, torch.float32)
    moved = torch.full((len(centroids),), known is None, device=device)
    known = nothing_known(len(points), device) if known is None else known
    sums = _Sums(torch.zeros_like(centroids, dtype=torch.float64), torch.full((len(points),), -1, device=device))
    for _ in range(max_iter + 1):  # the last one assigns only
        if not _visit(points, centroids, moved, known, sums, closest=closest):
            break
        before, centroids = centroids, _moved(centroids, sums.of, known.labels.bincount(minlength=len(centroids)))
        moved = (centroids != before).any(dim=1)
    return known.labels.cpu(), centroids


def _visit(
    points: Float[Tensor, "n d"],
    centroids: Float32[Tensor, "k d"],
    moved: Bool[Tensor, " k"],
    known: Known,
    sums: _Sums,
    *,
    closest: Search,
) -> int:
    """Bring up to date what is known of the points, and the sums; return how many points were in another sum."""
    compared = moved.int().topk(max(2, int(moved.sum()))).indices  # two at least, for there to be a second nearest
    n_changed = 0
    for rows in row_slices(points):
        part, before = points[rows].to(centroids.device, torch.float32).contiguous(), known[rows]
        if 2 * len(compared) > len(centroids):
            found = _among_all(part, centroids, 1, closest)
        else:
            found = _among(part, centroids, compared, before, closest)
            unsure = (found.nearest > found.others).nonzero().flatten()
            if len(unsure):
                found[unsure] = _among_all(part[unsure], centroids, 2, closest)
        known[rows] = found
        n_changed += sums.hold(rows, part, found.labels)
    return n_changed


def _among_all(
    points: Float32[Tensor, "c d"], centroids: Float32[Tensor, "k d"], n_nearest: int, closest: Search
) -> Known:
    """Return what the one or two nearest of all centroids tell: of one, that no other is nearer than it."""
    distances, places = closest(points, centroids, n_nearest)
    return Known(places[:, 0], distances[:, 0], distances[:, -1])


def _among(
    points: Float32[Tensor, "c d"],
    centroids: Float32[Tensor, "k d"],
    compared: Int64[Tensor, " m"],
    known: Known,
    closest: Search,
) -> Known:
    """Return what is known once the points are compared with the centroids that moved, and not with the others."""
    distances, places = closest(points, centroids[compared], 2)
    places = compared[places]
    is_own = places == known.labels.unsqueeze(1)
    own = distances.where(is_own, torch.inf).amin(dim=1)  # infinite where two that moved are nearer than it
    own = known.nearest.where(torch.isin(known.labels, compared, invert=True), own)
    rival = distances[:, 0].where(~is_own[:, 0], distances[:, 1])
    others = torch.stack([known.others, torch.maximum(own, rival), distances[:, 1]]).amin(dim=0)
    return Known(places[:, 0].where(rival < own, known.labels), torch.minimum(own, rival), others)


def _moved(
    centroids: Float32[Tensor, "k d"], sums: Float64[Tensor, "k d"], sizes: Int64[Tensor, " k"]
) -> Float32[Tensor, "k d"]:
    """Return the means of the clusters; an empty one and one of the largest start from both sides of the latter's."""
    centroids = torch.where(sizes.unsqueeze(1) > 0, sums / sizes.clamp(min=1).unsqueeze(1), centroids).float()
    empty = (sizes == 0).nonzero().flatten()
    largest = sizes.argsort(descending=True)[: len(empty)]
    largest = largest[sizes[largest] > 1]
    empty = empty[: len(largest)]
    apart = torch.full((centroids.shape[1],), _APART, dtype=torch.float32, device=centroids.device)
    apart[1::2] *= -1
    centroids[empty] = centroids[largest] * (1 + apart)
    centroids[largest] *= 1 - apart
    return centroids
