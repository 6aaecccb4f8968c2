"""An inverted file of faiss with short codes, tuned to a recall that is measured on its own rows."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from udmlss.neighbors.backends import Neighbors
from udmlss.neighbors.search import search, without_self

_SAMPLED = 512  # rows on which the recall is measured
_NEIGHBORS = 10  # of which the recall is measured
_CELLS = 4  # times the square root of n
_ROWS_PER_CELL = 32  # sampled rows that the centers of the cells are computed from
_ITERATIONS = 6  # of k-means on these rows
_SLACK = 0.4  # of the missing recall is for neighbors in the searched cells whose codes are not near
_FACTORS = (4, 8, 16, 32, 64)  # candidates per neighbor
_EQUAL = 1e-6  # similarities that differ by less are equal, so that any of equal rows counts as found
_NUMBERS = 2**24  # elements of the candidates that are compared at once: 64 MiB


@dataclass(eq=False)
class InvertedFile:
    """Cells of near rows, and a code of 4 bits per two dimensions for each row.

    A search reads the codes in the cells nearest to a query, and compares the query with the rows whose codes are the
    nearest.

    Attributes:
        cells: The `IndexIVFPQFastScan` of faiss, whose `nprobe` is the number of cells that a search reads.
        factor: Number of rows that a query is compared with, per neighbor.
        recall: Fraction of the ten nearest neighbors that a search finds, measured on a sample of the rows.
    """

    cells: Any
    factor: int
    recall: float

    @classmethod
    def build(
        cls, faiss: ModuleType, rows: Float32[Tensor, "n d"], *, target_recall: float, seed: int
    ) -> "InvertedFile | None":
        """Build an inverted file of unit rows with the keys 0..n-1, or return None if the recall cannot be reached."""
        n, d = rows.shape
        cells = faiss.index_factory(d + d % 2, f"IVF{int(_CELLS * n**0.5)},PQ{(d + 1) // 2}x4fs")
        for settings in (cells.cp, cells.pq.cp):
            settings.min_points_per_centroid, settings.seed = 1, seed  # faiss prints a warning below its default of 39
        cells.cp.niter, cells.cp.max_points_per_centroid = _ITERATIONS, _ROWS_PER_CELL
        cells.train(_even(rows))
        built = cls(cells, _FACTORS[0], 0.0)
        built.add(rows, np.arange(n))
        return built if built._tune(rows, target_recall, seed) else None

    def _tune(self, rows: Float32[Tensor, "n d"], target_recall: float, seed: int) -> bool:
        """Choose the number of cells, then of candidates, and return whether the recall was reached."""
        n_neighbors, n = min(_NEIGHBORS, len(rows) - 1), len(rows)
        sampled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:_SAMPLED]
        queries, keys = rows[sampled], np.arange(n)
        similarities, nearest = without_self(search(rows, n_neighbors + 1, queries), sampled)
        covered = target_recall + (1 - target_recall) * _SLACK
        ranks = self._ranks(queries, rows[nearest.flatten()]).flatten()
        self.cells.nprobe = int(np.quantile(ranks, covered, method="higher")) + 1
        for self.factor in _FACTORS:
            found, _ = without_self(self.search(rows, keys, queries, n_neighbors + 1), sampled)
            self.recall = float((found >= similarities[:, -1:] - _EQUAL).double().mean())
            if self.recall >= target_recall:
                return True
        return False

    def _ranks(self, queries: Float32[Tensor, "q d"], neighbors: Float32[Tensor, "m d"]) -> NDArray[np.int64]:
        """Return how many cells are nearer to each query than the cell of each of its m / q neighbors."""
        _, order = self.cells.quantizer.search(_even(queries), self.cells.nlist)
        _, cells = self.cells.quantizer.search(_even(neighbors), 1)
        return np.take_along_axis(order.argsort(axis=1), cells.reshape(len(queries), -1), axis=1)

    def add(self, rows: Float32[Tensor, "m d"], keys: NDArray[np.int64]) -> None:
        """Add unit rows with these keys."""
        self.cells.add_with_ids(_even(rows), keys)

    def search(
        self, rows: Float32[Tensor, "n d"], keys: NDArray[np.int64], queries: Float32[Tensor, "q d"], k: int
    ) -> Neighbors:
        """Return similarities and positions of about the k most similar rows of each query.

        Args:
            rows: The unit rows of the file.
            keys: Key of each row, in ascending order. A key of the file that is not among them is ignored: rows are not
                removed from the file, because `remove_ids` of faiss 1.15 damages the codes of rows that are added later.
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
        _, found = self.cells.search(_even(queries), n_candidates)
        positions = np.searchsorted(keys, found).clip(max=len(keys) - 1)
        is_row = torch.from_numpy(keys[positions] == found)  # the key is -1 where the cells have fewer rows
        candidates = torch.from_numpy(positions)
        similarities = torch.bmm(rows[candidates], queries.unsqueeze(2)).squeeze(2)
        similarities, order = similarities.where(is_row, -torch.inf).topk(k)
        indices: Int64[Tensor, "q k"] = candidates.gather(1, order)
        few = (similarities[:, -1] == -torch.inf).nonzero().flatten()
        if len(few):
            similarities[few], indices[few] = search(rows, k, queries[few])
        return similarities, indices


def _even(rows: Float32[Tensor, "n d"]) -> NDArray[np.float32]:
    """Return rows with an even number of columns, since each code of 4 bits is for two of them."""
    found: NDArray[np.float32] = functional.pad(rows, (0, rows.shape[1] % 2)).contiguous().numpy()
    return found
