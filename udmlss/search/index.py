"""An index of embeddings that finds the items most similar to a query."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from udmlss._checks import as_device, check_integer, check_number, value_error
from udmlss._chunks import storage_device
from udmlss.inference import embed
from udmlss.neighbors.backends import Neighbors, import_faiss, search_on
from udmlss.neighbors.search import check_k, search
from udmlss.search.index_folder import read_index, write_index
from udmlss.search.inverted_file import InvertedFile
from udmlss.search.reranking import CANDIDATES_PER_NEIGHBOR, Reranker, expand_queries
from udmlss.search.rows import Embeddings, Ids, as_ids, as_unit_rows, check_same_type
from udmlss.types import Images

Found = tuple[NDArray[Any], NDArray[np.float32]]  # ids (q, k) and similarities (q, k)

_EXACT = 2**22  # numbers in the embeddings up to which the exact search is fast, by benchmarks/speed_search.py
_FEWEST_ITEMS = 16  # fewer items would have more cells than items: 4 times the square root of their number
_LARGEST_CHANGE = 2  # ratio of the items ever added to the present items at which cells are computed again
_ROWS, _IDS, _KEYS, _ORIGIN, _CELLS = "embeddings.npy", "ids.npy", "keys.npy", "origin.npy", "cells.faiss"


class SearchIndex:
    """An index of embeddings, which returns the ids of the items that are most similar to a query.

    Similarity is the cosine. Up to 2**22 numbers n x d, such as 8,000 x 512, the search is exact. In a larger index,
    faiss divides the embeddings into cells of near embeddings. A search reads only the cells nearest to the query,
    and compares the query with a few candidates in them. The numbers of cells and candidates are chosen such that a
    sample of the items finds its ten nearest neighbors with the target recall. The recall is lower for more than ten
    neighbors, and for queries that are unlike all items. The search remains exact if faiss is not installed, or if
    the target cannot be reached.

    Args:
        embeddings: Embeddings (n, d) of any length, a tensor or an array of NumPy. The index stores a copy at unit
            length, as float32 on the CPU.
        ids: An id for each embedding: integers, strings or paths, which become strings. None uses 0..n-1.
        target_recall: Fraction of the ten nearest neighbors that a search finds at least, above 0 and at most 1. 1
            searches exactly.
        device: Device that searches. The search on a GPU is exact. The GPU stores a copy of the items if they take at
            most an eighth of its memory, and otherwise reads them in parts.
        seed: Seed of the cells and of the sample.

    Attributes:
        recall: The fraction that was measured. 1 if the search is exact. It is measured again when cells are computed
            again.

    Raises:
        ValueError: `target_recall` is out of range, this machine does not have the device, embeddings are not finite
            or empty, or ids are not unique or not one per embedding.
        TypeError: Embeddings are not floating-point, or ids are neither all integers nor all strings.

    Example:
        >>> from udmlss.search import SearchIndex
        >>> index = SearchIndex(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), ids=["a", "b", "c"])
        >>> index
        SearchIndex(3 items, 2 dimensions, exact)
        >>> ids, similarities = index.search(torch.tensor([[2.0, 0.1]]), k=2)
        >>> ids.tolist()
        [['a', 'b']]

    References:
        Product Quantization for Nearest Neighbor Search. Jegou, Douze, Schmid. 2011.
        https://doi.org/10.1109/TPAMI.2010.57. The index of faiss is an `IndexIVFPQFastScan`.
    """

    _rerankers: dict[int, Reranker]  # by the number of neighbors

    def __init__(
        self,
        embeddings: Embeddings,
        ids: Ids | None = None,
        *,
        target_recall: float = 0.95,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        check_number("target_recall", target_recall, most=1, above=0)
        check_integer("seed", seed, 0)
        self._target_recall, self._device, self._seed = float(target_recall), as_device(device), int(seed)
        self._store(as_unit_rows(embeddings))
        self._ids = as_ids(np.arange(len(self._rows)) if ids is None else ids, len(self._rows))
        self._build()

    def _build(self) -> None:
        self._keys, self._n_built, self._n_keys, self._cells = np.arange(len(self)), len(self), len(self), None
        faiss, is_large = import_faiss(), self._rows.numel() > _EXACT and len(self) >= _FEWEST_ITEMS
        if faiss is not None and is_large and self._target_recall < 1 and self._device.type == "cpu":
            self._cells = InvertedFile.build(faiss, self._rows, target_recall=self._target_recall, seed=self._seed)

    @property
    def recall(self) -> float:
        """Fraction of the ten nearest neighbors that a search finds, measured on a sample; 1 if it is exact."""
        return 1.0 if self._cells is None else self._cells.recall

    @property
    def ids(self) -> NDArray[Any]:
        """Ids of the items, in the order in which they were added."""
        return self._ids.copy()

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        n, d, quality = *self._rows.shape, "exact" if self._cells is None else f"recall={self.recall:.3f}"
        return f"SearchIndex({n} items, {d} dimensions, {quality})"

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        expand_neighbors: int | None = None,
        rerank_neighbors: int | None = None,
    ) -> Found:
        """Find the k items that are most similar to each query.

        The numbers of neighbors should be below the number of images per class: more neighbors belong to other
        classes and make the result worse.

        Args:
            queries: Embeddings (q, d) of any length, of the model that embedded the items.
            k: Number of items per query.
            expand_neighbors: Number of nearest items that are added to a query, each weighted by the third power of
                its similarity, before a second search (query expansion). None does not expand.
            rerank_neighbors: Number of nearest neighbors in the lists that re-ranking compares, below the number of
                items: the first candidates are ordered by the k-reciprocal neighbors that they share with the query.
                The first search with a number of neighbors computes the lists of all items, for which memory grows
                with n x neighbors. None does not re-rank.

        Returns:
            The ids (q, k), and the similarities (q, k) in descending order: cosines, with expansion those of
            the expanded query. Re-ranking returns 0.3 x cosine + 0.7 x k-reciprocal Jaccard similarity.

        Raises:
            ValueError: `k` or a number of neighbors is below 1 or above the number of items, the queries have another
                dimension than the items, or are not finite.
            TypeError: `k` is not an integer, or queries are not floating-point.

        References:
            Fine-tuning CNN Image Retrieval with No Human Annotation. Radenovic, Tolias, Chum. 2018.
            https://arxiv.org/abs/1711.02512, for the query expansion.
            Re-ranking Person Re-identification with k-reciprocal Encoding. Zhong et al. 2017.
            https://arxiv.org/abs/1701.08398
        """
        check_integer("k", k, 1)
        check_k(k, len(self))
        if expand_neighbors is not None:
            check_integer("expand_neighbors", expand_neighbors, 1, len(self))
        if rerank_neighbors is not None:
            check_integer("rerank_neighbors", rerank_neighbors, 1, len(self) - 1)
        rows = as_unit_rows(queries, "queries", self._rows.shape[1])
        if expand_neighbors is not None:
            similarities, indices = self._nearest(rows, int(expand_neighbors))
            rows = expand_queries(rows, similarities, indices, self._rows)
        if rerank_neighbors is None:
            found = self._nearest(rows, int(k))
        else:
            n_candidates = min(len(self), max(int(k), CANDIDATES_PER_NEIGHBOR * int(rerank_neighbors)))
            candidates = self._nearest(rows, n_candidates)
            found = self._reranker(int(rerank_neighbors)).rerank(rows, *candidates, int(k))
        return self._ids[found[1].numpy()], found[0].numpy()

    def search_images(self, model: nn.Module, images: Images, k: int = 10) -> Found:
        """Embed images and find the k items that are most similar to each of them.

        This is the same as `index.search(embed(model, images), k)`. Call these two functions to set their options.

        Args:
            model: The model that embedded the items.
            images: Images of the queries, with the transforms of the items; any dataset that `embed` accepts.
            k: Number of items per query.

        Returns:
            What `search` returns.
        """
        check_integer("k", k, 1)
        check_k(k, len(self))
        return self.search(embed(model, images), k)

    def _reranker(self, n_neighbors: int) -> Reranker:
        found = self._rerankers.get(n_neighbors)
        if found is None:
            with search_on(self._device):
                found = Reranker(self._rows, n_neighbors)
            self._rerankers = {n_neighbors: found}  # one at a time, because they take memory
        return found

    def _nearest(self, queries: Float32[Tensor, "q d"], k: int) -> Neighbors:
        if self._cells is None:
            with search_on(self._device):
                similarities, indices = search(self._gallery, k, queries)
            return similarities.cpu(), indices.cpu()
        return self._cells.search(self._rows, self._keys, queries, k)

    def _store(self, rows: Float32[Tensor, "n d"]) -> None:
        """Store the items, and a copy of them on a GPU that searches, if they fit."""
        self._rows, self._gallery = rows, rows.to(storage_device(rows.shape, self._device))
        self._rerankers = {}

    def add(self, embeddings: Embeddings, ids: Ids) -> None:
        """Add items.

        Cells and recall are computed again when the number of items has doubled.

        Args:
            embeddings: Embeddings (m, d) of any length.
            ids: An id for each embedding, of the type of the existing ids and different from them.

        Raises:
            ValueError: An id exists, ids are not one per embedding, or embeddings have another dimension.
            TypeError: Ids have another type than the existing ones.
        """
        rows = as_unit_rows(embeddings, "embeddings", self._rows.shape[1])
        added = as_ids(ids, len(rows))
        check_same_type(added, self._ids)
        if len(existing := np.intersect1d(added, self._ids)):
            remedy = "Call `remove` for it first, or use another id"
            raise value_error("`ids` must be new", f"{existing[0].item()!r}, which is in the index", remedy)
        keys = self._n_keys + np.arange(len(rows))
        self._n_keys += len(rows)
        self._store(torch.cat([self._rows, rows]))
        self._ids, self._keys = np.concatenate([self._ids, added]), np.concatenate([self._keys, keys])
        if self._cells is not None:
            self._cells.add(rows, keys)
        self._build_after_changes()

    def remove(self, ids: Ids) -> None:
        """Remove items.

        Args:
            ids: Ids of the items. When half of the items have been removed, cells and recall are computed again.

        Raises:
            ValueError: An id is not in the index or occurs twice, or no item would remain.
            TypeError: Ids have another type than the existing ones.
        """
        removed = as_ids(ids)
        check_same_type(removed, self._ids)
        if len(missing := np.setdiff1d(removed, self._ids)):
            raise value_error("`ids` must be in the index", f"{missing[0].item()!r}, which is not", "Check the id")
        if len(removed) == len(self):
            remedy = "Build a new index from other items"
            raise value_error("`ids` must leave an item in the index", f"all {len(self)} ids", remedy)
        is_removed = np.isin(self._ids, removed)
        retained: Int64[Tensor, " m"] = torch.from_numpy(np.flatnonzero(~is_removed))
        self._store(self._rows[retained])
        self._ids, self._keys = self._ids[~is_removed], self._keys[~is_removed]
        self._build_after_changes()

    def _build_after_changes(self) -> None:
        if self._n_keys >= _LARGEST_CHANGE * min(self._n_built, len(self)):
            self._build()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save the index to a folder: arrays of NumPy, the file of faiss, and a description in JSON.

        Files are written to a temporary folder next to `folder`, which then replaces it, so that the folder never
        contains an incomplete index.

        Args:
            folder: Path of the folder, which is created. An index in it is replaced.

        Raises:
            ValueError: `folder` is a file, or a folder with other files.
            OSError: Writing failed. A previous index is unchanged.
        """
        arrays = {_ROWS: self._rows.numpy(), _IDS: self._ids, _KEYS: self._keys}
        settings = {"target_recall": self._target_recall, "seed": self._seed}
        settings |= {"n_built": self._n_built, "n_keys": self._n_keys}
        if self._cells is not None:
            faiss = import_faiss()
            arrays[_ORIGIN] = self._cells.origin.numpy()
            arrays[_CELLS] = faiss.serialize_index(self._cells.cells)  # type: ignore[union-attr] # it built the cells
            settings |= {"factor": self._cells.factor, "recall": self._cells.recall}
        write_index(Path(folder).expanduser(), settings, arrays)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> "SearchIndex":
        """Load an index that `save` wrote. Nothing is unpickled.

        Without faiss and on a GPU the search is exact. If such an index is saved, its folder has no cells.

        Args:
            folder: Path of the folder.
            device: Device that searches, as for a new index.

        Raises:
            ValueError: The folder has no index, or a file is missing, damaged or of another index.
        """
        settings, arrays = read_index(Path(folder).expanduser())
        index = cls.__new__(cls)
        try:
            index._restore(settings, arrays, as_device(device))  # noqa: SLF001 (an object of this class)
        except KeyError as error:
            rule = "`folder` must be a folder that `SearchIndex.save` wrote"
            remedy = "Build the index again and save it"
            raise value_error(rule, f"{folder} without the entry {error}", remedy) from error
        return index

    def _restore(self, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: torch.device) -> None:
        self._target_recall, self._seed, self._device = settings["target_recall"], settings["seed"], device
        self._store(torch.from_numpy(arrays[_ROWS]))
        self._ids, self._keys = arrays[_IDS], arrays[_KEYS]
        self._n_built, self._n_keys = settings["n_built"], settings["n_keys"]
        self._cells, faiss = None, import_faiss()
        if _CELLS in arrays and faiss is not None and self._device.type == "cpu":
            cells = faiss.deserialize_index(arrays[_CELLS])
            self._cells = InvertedFile(cells, torch.from_numpy(arrays[_ORIGIN]), settings["factor"], settings["recall"])
