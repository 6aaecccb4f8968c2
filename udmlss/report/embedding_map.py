"""A map of embeddings in two dimensions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from udmlss.neighbors.search import unit_length
from udmlss.report.neighbor_changes import sample_rows

MAP_COLUMNS, MAP_LINES = 24, 16  # tiles
_MAPPED = 3_000  # largest number of images on a map
_FEW = 4  # images, of which the principal components are a map
_PERPLEXITY = 30  # number of neighbors that t-SNE aims to retain
_ITERATIONS = 500
_INITIAL_SPREAD = 1e-4  # of the start of t-SNE, as in scikit-learn
_ROUNDING = 1e-6  # largest range of embeddings that differ by rounding in float32
_OUTLIERS = 0.5  # percent of the points on each side that are moved to the margin


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Positions of images in the plane.

    Attributes:
        rows: Indices of the images; a sample if there are more than 3,000.
        points: Their positions (m, 2) in 0..1.
    """

    rows: NDArray[np.int64]
    points: NDArray[np.float64]


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
    """Project embeddings of unit length onto two dimensions by t-SNE, which starts from the principal components.

    References:
        Visualizing Data using t-SNE. Van der Maaten, Hinton. 2008. https://jmlr.org/papers/v9/vandermaaten08a.html
    """
    rows = sample_rows(len(embeddings), _MAPPED, seed)
    directions = unit_length(embeddings.detach()[rows.to(embeddings.device)]).cpu().numpy()
    points = _principal_components(directions)
    if len(rows) > _FEW and points.any():
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        points = TSNE(
            perplexity=perplexity, init=points * _INITIAL_SPREAD, max_iter=_ITERATIONS, random_state=seed
        ).fit_transform(directions.astype(np.float64))
    low, high = np.percentile(points, [_OUTLIERS, 100 - _OUTLIERS], axis=0)
    return EmbeddingMap(rows.numpy(), np.clip((points - low) / np.maximum(high - low, _ROUNDING), 0, 1))


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


def _principal_components(directions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the first two principal components, 0 where there are fewer, scaled such that the first varies by 1."""
    points = np.zeros((len(directions), 2))
    n_components = min(2, *directions.shape)
    if np.ptp(directions, axis=0).max() > _ROUNDING:
        points[:, :n_components] = PCA(n_components, svd_solver="full").fit_transform(directions)
        points /= points[:, 0].std()
    return points
