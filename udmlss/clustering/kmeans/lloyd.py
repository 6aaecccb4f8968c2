"""Lloyd's iterations of k-means, for points in memory, on a GPU or mapped from a file."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from udmlss._chunks import row_slices
from udmlss.clustering.kmeans.points import Points, ScaledPoints
from udmlss.neighbors.backends import Search, euclidean_search, full_precision
from udmlss.neighbors.sharing import current_share

_ALONE = 2**37  # multiplications of points and centers up to which one process searches alone
_FEWEST_CENTERS = 1000  # estimated; with fewer, sending the points may take longer than the search
_SPLIT_OFFSET = 1 / 1024  # relative offset of the two halves of a split cluster from its center, as in faiss


@dataclass
class Assignment:
    """The nearest center of each point, with the squared distances that decide whether it can change.

    Attributes:
        labels: Index of the nearest center, or -1 before the first search.
        distances: Squared distance to the nearest center.
        lower_bounds: Lower bound of the squared distances to all other centers.
    """

    labels: Int64[Tensor, " n"]
    distances: Float[Tensor, " n"]
    lower_bounds: Float[Tensor, " n"]

    def __getitem__(self, rows: slice | Tensor) -> "Assignment":
        return Assignment(self.labels[rows], self.distances[rows], self.lower_bounds[rows])

    def __setitem__(self, rows: slice | Tensor, new: "Assignment") -> None:
        self.labels[rows], self.distances[rows], self.lower_bounds[rows] = new.labels, new.distances, new.lower_bounds


@dataclass
class _ClusterSums:
    """The sum of the points of each cluster, and the cluster whose sum includes each point (-1 for none)."""

    sums: Float64[Tensor, "k d"]
    labels: Int64[Tensor, " n"]

    def update(self, rows: slice, points: Float[Tensor, "c d"], labels: Int64[Tensor, " c"]) -> int:
        """Move points to the sums of their new clusters and return the number of points that were moved."""
        changed = (labels != self.labels[rows]).nonzero().flatten()
        old, new = self.labels[rows][changed], labels[changed]
        self.sums.index_add_(0, old[old >= 0], points[changed[old >= 0]].double(), alpha=-1)
        self.sums.index_add_(0, new, points[changed].double())
        self.labels[rows] = labels
        return len(changed)


def unassigned(n: int, device: torch.device, dtype: torch.dtype) -> Assignment:
    """Return the assignment of n points before the first search."""
    infinite = torch.full((n,), torch.inf, dtype=dtype, device=device)
    return Assignment(torch.full((n,), -1, device=device), infinite, infinite.clone())


def lloyd(
    points: Points,
    centers: Float[Tensor, "k d"],
    max_iter: int,
    assignment: Assignment | None = None,
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "k d"], float]:
    """Run Lloyd's iterations until no point changes its cluster, or `max_iter` times.

    Each iteration reads the points once, one slice at a time, and updates the sums of the clusters in float64. Once
    at least half of the centers no longer move, a point is compared with the centers that moved. It is compared with
    all centers only if a lower bound of its distances to the others shows that one of them may be nearer. The result is
    the same as if each point were always compared with all centers.

    Inside `share_searches`, all processes compare the points with all centers, each a part of the points, if there are
    many points and centers.

    An empty cluster takes over half of one of the largest clusters, or, with `ScaledPoints`, one of the points that are
    farthest from their centers.

    Args:
        points: Points of any floating type, in memory, on a GPU or mapped from a file; or `ScaledPoints`, which are
            compared exactly in float64.
        centers: Initial centers, at least two, in float64 for `ScaledPoints` and in float32 for other points.
        max_iter: Maximum number of iterations.
        assignment: Assignment of the points to the initial centers, which is changed in place. None computes it.

    Returns:
        The cluster of each point (n,), on the CPU; the means of the clusters (k, d); and the inertia, which is the sum
        of the squared distances to the nearest center.
    """
    device, search = euclidean_search(points.device, centers.dtype)
    centers = centers.to(device)
    moved = torch.full((len(centers),), assignment is None, device=device)
    assignment = unassigned(len(points), device, centers.dtype) if assignment is None else assignment
    sums = _ClusterSums(torch.zeros_like(centers, dtype=torch.float64), torch.full((len(points),), -1, device=device))
    for _ in range(max_iter + 1):  # the last iteration only assigns
        if not _assign(points, centers, moved, assignment, sums, search=search):
            break
        previous, sizes = centers, assignment.labels.bincount(minlength=len(centers))
        centers = _means(centers, sums.sums, sizes)
        if isinstance(points, ScaledPoints):
            _move_to_farthest(centers, sizes, points, assignment)
        else:
            _split_largest(centers, sizes)
        moved = (centers != previous).any(dim=1)
    return assignment.labels.cpu(), centers, float(assignment.distances.double().sum())


def _assign(
    points: Points,
    centers: Float[Tensor, "k d"],
    moved: Bool[Tensor, " k"],
    assignment: Assignment,
    sums: _ClusterSums,
    *,
    search: Search,
) -> int:
    """Update the assignment and the sums, and return the number of points that changed their cluster."""
    candidates = moved.int().topk(max(2, int(moved.sum()))).indices  # at least two, to have a second nearest center
    compares_all = bool(moved.any()) and 2 * len(candidates) > len(centers)
    found = _assign_together(points, centers) if compares_all else None
    n_changed = 0
    for rows in row_slices(points):
        part, before = points[rows].to(centers.device, centers.dtype).contiguous(), assignment[rows]
        if not moved.any():
            after = before  # of the initial centers, or of centers that remained
        elif found is not None:
            after = found[rows]
        elif compares_all:
            after = _assign_to_all(part, centers, 1, search)
        else:
            after = _assign_to_candidates(part, centers, candidates, before, search)
            uncertain = (after.distances > after.lower_bounds).nonzero().flatten()
            if len(uncertain):
                after[uncertain] = _assign_to_all(part[uncertain], centers, 2, search)
        assignment[rows] = after
        n_changed += sums.update(rows, part, after.labels)
    return n_changed


def _assign_together(points: Points, centers: Float[Tensor, "k d"]) -> Assignment | None:
    """Assign all points to their nearest centers, each process a part of them; None if one process is faster."""
    share = current_share()
    if share is None or not isinstance(points, Tensor) or points.dtype != torch.float32:
        return None
    if len(centers) < _FEWEST_CENTERS or points.numel() * len(centers) <= _ALONE:
        return None
    assignment = unassigned(len(points), centers.device, centers.dtype)

    def store(rows: Int64[Tensor, " c"], distances: Float[Tensor, " c"], labels: Int64[Tensor, " c"]) -> None:
        distances = distances.to(centers.device)
        assignment[rows.to(centers.device)] = Assignment(labels.to(centers.device), distances, distances)

    share(points, _NearestCenters(centers.to(points.device)), store)
    return assignment


@dataclass(frozen=True, eq=False)
class _NearestCenters:
    """Work on a part of the points: a search for the nearest center of each."""

    centers: Float[Tensor, "k d"]

    def __call__(self, points: Tensor, part: int, n_parts: int) -> Iterator[tuple[Tensor, ...]]:
        device, search = euclidean_search(points.device, self.centers.dtype)
        centers, n = self.centers.to(device), len(points)
        first, last = n * part // n_parts, n * (part + 1) // n_parts
        for rows in row_slices(points[first:last]):
            with full_precision(device):
                found = _assign_to_all(points[first:last][rows].to(device).contiguous(), centers, 1, search)
            numbers = torch.arange(first + rows.start, first + rows.stop, device=points.device)
            yield numbers, found.distances.to(points.device), found.labels.to(points.device)


def _assign_to_all(
    points: Float[Tensor, "c d"], centers: Float[Tensor, "k d"], n_nearest: int, search: Search
) -> Assignment:
    """Assign points by a search of all centers; with one nearest center its distance is also the lower bound."""
    distances, labels = search(points, centers, n_nearest)
    return Assignment(labels[:, 0], distances[:, 0], distances[:, -1])


def _assign_to_candidates(
    points: Float[Tensor, "c d"],
    centers: Float[Tensor, "k d"],
    candidates: Int64[Tensor, " m"],
    before: Assignment,
    search: Search,
) -> Assignment:
    """Assign points by a search of the candidates, which include all centers that moved, and of their own center."""
    distances, nearest = search(points, centers[candidates], 2)
    nearest = candidates[nearest]
    is_own = nearest == before.labels.unsqueeze(1)
    own = distances.where(is_own, torch.inf).amin(dim=1)  # infinite if two other candidates are nearer
    own = before.distances.where(torch.isin(before.labels, candidates, invert=True), own)
    nearest_other = distances[:, 0].where(~is_own[:, 0], distances[:, 1])
    bounds = torch.stack([before.lower_bounds, torch.maximum(own, nearest_other), distances[:, 1]]).amin(dim=0)
    labels = nearest[:, 0].where(nearest_other < own, before.labels)
    return Assignment(labels, torch.minimum(own, nearest_other), bounds)


def _means(
    centers: Float[Tensor, "k d"], sums: Float64[Tensor, "k d"], sizes: Int64[Tensor, " k"]
) -> Float[Tensor, "k d"]:
    """Return the means of the clusters; an empty cluster retains its center."""
    return torch.where(sizes.unsqueeze(1) > 0, sums / sizes.clamp(min=1).unsqueeze(1), centers).to(centers.dtype)


def _split_largest(centers: Float[Tensor, "k d"], sizes: Int64[Tensor, " k"]) -> None:
    """Let the center of each empty cluster take over half of one of the largest clusters."""
    empty = (sizes == 0).nonzero().flatten()
    largest = sizes.argsort(descending=True)[: len(empty)]
    largest = largest[sizes[largest] > 1]
    empty = empty[: len(largest)]
    offset = torch.full((centers.shape[1],), _SPLIT_OFFSET, dtype=centers.dtype, device=centers.device)
    offset[1::2] *= -1
    centers[empty] = centers[largest] * (1 + offset)
    centers[largest] *= 1 - offset


def _move_to_farthest(
    centers: Float64[Tensor, "k d"], sizes: Int64[Tensor, " k"], points: ScaledPoints, assignment: Assignment
) -> None:
    """Move the center of each empty cluster to one of the points that are farthest from their centers.

    Halves of a small cluster that is far from the origin would be farther from its points than other clusters.
    """
    empty = (sizes == 0).nonzero().flatten()
    farthest = assignment.distances.topk(len(empty)).indices
    centers[empty] = points[farthest.to(points.device)].to(centers)
