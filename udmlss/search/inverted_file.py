"""An inverted file of faiss with short codes, tuned to a recall that is measured on its own rows."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from udmlss._chunks import row_slices
from udmlss.neighbors.backends import Neighbors
from udmlss.neighbors.search import search, without_self

_SAMPLED = 512  # rows on which the recall is measured
_NEIGHBORS = 10  # number of neighbors for which the recall is measured
_CELLS = 4  # times the square root of n
_ROWS_PER_CELL = 32  # sampled rows that the centers of the cells are computed from
_ITERATIONS = 6  # of k-means on these rows
_SLACK = 0.4  # fraction of the allowed loss of recall that is due to inexact codes; unsearched cells cause the rest
_FACTORS = (4, 8, 16, 32, 64)  # candidates per neighbor
_ROUNDING = 1e-6  # of squared distances, as a fraction
_EQUAL = 1e-12  # largest squared distance of equal rows, any of which counts as found
_NUMBERS = 2**24  # elements of the candidates that are compared at once: 64 MiB


@dataclass(eq=False)
class InvertedFile:
    """Cells of near rows, and a code of 4 bits per two dimensions for each row.

    A search reads the codes in the cells nearest to a query, and compares the query with the rows whose codes are the
    nearest.

    Attributes:
        cells: The `IndexIVFPQFastScan` of faiss, whose `nprobe` is the number of cells that a search reads.
        origin: Mean of the rows, which is subtracted because faiss would round differences away far from the origin.
        factor: Number of rows that a query is compared with, per neighbor.
        recall: Fraction of the ten nearest neighbors that a search finds, measured on a sample of the rows.
    """

    cells: Any
    origin: Float32[Tensor, " d"]
    factor: int
    recall: float

    @classmethod
    def build(
        cls, faiss: ModuleType, rows: Float32[Tensor, "n d"], *, target_recall: float, seed: int
    ) -> "InvertedFile | None":
        """Build an inverted file of unit rows with the keys 0..n-1, or return None if the recall cannot be reached."""
        n, d = rows.shape
        n_cells = int(_CELLS * n**0.5)
        cells = faiss.index_factory(d + d % 2, f"IVF{n_cells},PQ{(d + 1) // 2}x4fs")
        for settings in (cells.cp, cells.pq.cp):
            settings.min_points_per_centroid = 1  # faiss prints a warning below its default of 39
            settings.seed = seed % 2**31  # the seed of faiss has 32 bits
        cells.cp.niter, cells.cp.max_points_per_centroid = _ITERATIONS, _ROWS_PER_CELL
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        trained = rows[order[: _ROWS_PER_CELL * n_cells]]
        built = cls(cells, trained.mean(dim=0), _FACTORS[0], 0.0)
        cells.train(built._points(trained))
        built.add(rows, np.arange(n))
        sampled = order[-_SAMPLED:]  # other rows, where possible: those of k-means have a higher recall than queries
        return built if built._tune(rows, target_recall, sampled) else None

    def _tune(self, rows: Float32[Tensor, "n d"], target_recall: float, sampled: Int64[Tensor, " q"]) -> bool:
        """Choose the number of cells, then of candidates, and return whether the recall was reached."""
        k, queries, keys = min(_NEIGHBORS, len(rows) - 1), rows[sampled], np.arange(len(rows))
        _, nearest = without_self(search(rows, k + 1, queries), sampled)
        farthest = _squared_distances(rows, queries, nearest).amax(dim=1, keepdim=True)
        covered = target_recall + (1 - target_recall) * _SLACK
        ranks = self._ranks(queries, rows[nearest.flatten()]).flatten()
        self.cells.nprobe = int(np.quantile(ranks, covered, method="higher")) + 1
        for self.factor in _FACTORS:
            _, found = without_self(self.search(rows, keys, queries, k + 1), sampled)
            is_nearest = _squared_distances(rows, queries, found) <= farthest * (1 + _ROUNDING) + _EQUAL
            self.recall = float(is_nearest.double().mean())
            if self.recall >= target_recall:
                return True
        return False

    def _ranks(self, queries: Float32[Tensor, "q d"], neighbors: Float32[Tensor, "m d"]) -> NDArray[np.int64]:
        """Return how many cells are nearer to each query than the cell of each of its m / q neighbors."""
        _, order = self.cells.quantizer.search(self._points(queries), self.cells.nlist)
        _, cells = self.cells.quantizer.search(self._points(neighbors), 1)
        return np.take_along_axis(order.argsort(axis=1), cells.reshape(len(queries), -1), axis=1)

    def add(self, rows: Float32[Tensor, "m d"], keys: NDArray[np.int64]) -> None:
        """Add unit rows with these keys."""
        for part in row_slices(rows):
            self.cells.add_with_ids(self._points(rows[part]), keys[part])

    def search(
        self, rows: Float32[Tensor, "n d"], keys: NDArray[np.int64], queries: Float32[Tensor, "q d"], k: int
    ) -> Neighbors:
        """Return similarities and positions of about the k most similar rows of each query.

        Args:
            rows: The unit rows of the file.
            keys: Key of each row, in ascending order. Other keys in the file are ignored: removed rows stay in it,
                because `remove_ids` of faiss 1.15 damages the codes of rows that are added later.
            queries: Queries at unit length.
            k: Number of neighbors.
        """
        n_candidates = self.factor * max(k, _NEIGHBORS) * self.cells.ntotal // len(rows)
        n_candidates = min(n_candidates, self.cells.ntotal)
        step = max(1, _NUMBERS // (n_candidates * rows.shape[1]))
        parts = [self._search(rows, keys, part, k, n_candidates) for part in queries.split(step)]
        return torch.cat([similarities for similarities, _ in parts]), torch.cat([indices for _, indices in parts])

    def _search(
        self, rows: Tensor, keys: NDArray[np.int64], queries: Float32[Tensor, "q d"], k: int, n_candidates: int
    ) -> Neighbors:
        _, found = self.cells.search(self._points(queries), n_candidates)
        positions = np.searchsorted(keys, found).clip(max=len(keys) - 1)
        is_row = torch.from_numpy(keys[positions] == found)  # faiss returns -1 if the cells have fewer rows
        candidates = torch.from_numpy(positions)
        gathered = rows[candidates]
        is_orthogonal = torch.bmm(gathered, queries.unsqueeze(2)).squeeze(2) == 0  # such as a row of zeros
        squares = gathered.sub_(queries.unsqueeze(1)).square_().sum(dim=2)  # products would round small distances
        squares = squares.masked_fill_(is_orthogonal, 2).masked_fill_(~is_row, torch.inf)
        squares, order = squares.topk(k, largest=False)
        similarities, indices = 1 - squares / 2, candidates.gather(1, order)
        few = squares[:, -1].isinf().nonzero().flatten()
        if len(few):
            similarities[few], indices[few] = search(rows, k, queries[few])
        return similarities, indices

    def _points(self, rows: Float32[Tensor, "n d"]) -> NDArray[np.float32]:
        """Return rows relative to the origin, of an even dimension, since each code of 4 bits is for two numbers."""
        found: NDArray[np.float32] = functional.pad(rows - self.origin, (0, rows.shape[1] % 2)).numpy()
        return found


def _squared_distances(
    rows: Float32[Tensor, "n d"], queries: Float32[Tensor, "q d"], indices: Int64[Tensor, "q k"]
) -> Float64[Tensor, "q k"]:
    return (rows[indices].double() - queries.double().unsqueeze(1)).square_().sum(dim=2)
