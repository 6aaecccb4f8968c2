"""A map of embeddings in two dimensions."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from udmlss.neighbors.search import unit_length
from udmlss.report.neighbor_changes import sample_rows

_MAPPED = 5_000  # largest number of images on a map
_UMAP_NEIGHBORS = 15
_OUTLIERS = 0.5  # percent of the points on each side that are moved to the margin


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Positions of images in the plane.

    Attributes:
        rows: Rows of the images; a sample if there are more than 5,000.
        points: Their positions (m, 2) in 0..1.
        method: "UMAP" or "PCA".
    """

    rows: NDArray[np.int64]
    points: NDArray[np.float64]
    method: str


@dataclass(frozen=True)
class Tile:
    """A place of a map, with the image that is shown there.

    Attributes:
        column: Number of the column, from the left.
        line: Number of the line, from the top.
        row: Row of the image that is nearest to the middle of the place.
        count: Number of images at this place.
    """

    column: int
    line: int
    row: int
    count: int


def embedding_map(embeddings: Float[Tensor, "n d"], seed: int) -> EmbeddingMap:
    """Project embeddings of unit length onto two dimensions, by UMAP if umap-learn is installed, otherwise by PCA."""
    rows = sample_rows(len(embeddings), _MAPPED, seed)
    directions = unit_length(embeddings.detach()[rows.to(embeddings.device)]).cpu().numpy()
    points = _umap(directions, seed) if len(rows) > _UMAP_NEIGHBORS else None
    method = "PCA" if points is None else "UMAP"
    if points is None:
        points = _principal_components(directions)
    low, high = np.percentile(points, [_OUTLIERS, 100 - _OUTLIERS], axis=0)
    return EmbeddingMap(rows.numpy(), np.clip((points - low) / np.maximum(high - low, 1e-12), 0, 1), method)


def tiles(found: EmbeddingMap, n_columns: int, n_lines: int) -> list[Tile]:
    """Divide a map into places and return those with images, line by line."""
    scaled = found.points * [n_columns, n_lines]
    places = np.minimum(scaled.astype(int), [n_columns - 1, n_lines - 1])
    distances = np.abs(scaled - places - 0.5).max(axis=1)
    lines = n_lines - 1 - places[:, 1]  # the second coordinate points upward
    order = np.lexsort((distances, places[:, 0], lines))
    keys = lines[order] * n_columns + places[order, 0]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(starts, append=len(keys))
    return [
        Tile(int(keys[start] % n_columns), int(keys[start] // n_columns), int(found.rows[order[start]]), int(count))
        for start, count in zip(starts, counts, strict=True)
    ]


def _umap(directions: NDArray[np.float32], seed: int) -> NDArray[np.float64] | None:
    try:
        from umap import UMAP  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with a seed, UMAP warns that it runs in one thread
        return np.asarray(UMAP(random_state=seed, metric="cosine").fit_transform(directions), dtype=np.float64)


def _principal_components(directions: NDArray[np.float32]) -> NDArray[np.float64]:
    points = np.zeros((len(directions), 2))
    n_components = min(2, *directions.shape)
    if len(directions) > 1:
        points[:, :n_components] = PCA(n_components, svd_solver="full").fit_transform(directions)
    return points
