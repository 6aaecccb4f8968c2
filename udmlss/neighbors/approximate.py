"""Lists of nearest neighbors for sets of any size, exact or by a search of cells of near rows."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from udmlss._checks import check_embeddings, check_integer, check_number
from udmlss._chunks import Work, group_means, row_slices, with_float64
from udmlss.neighbors.backends import Neighbors, Search, euclidean_search, search_device
from udmlss.neighbors.copies import limit_copies
from udmlss.neighbors.exact import unit_vectors
from udmlss.neighbors.search import check_k, search, search_in_chunks, unit_length, without_self
from udmlss.neighbors.sharing import current_share

_EXACT = 2**37  # multiplications up to which the search is exact, which takes seconds
_SAMPLED = 512  # rows on which the recall is measured
_CELLS = 4  # times the square root of n
_ROWS_PER_CELL = 32  # sampled rows that the centers of the cells are computed from
_ITERATIONS = 6  # of k-means on these rows
_LARGEST_CELL = 8  # times the mean size; thousands of equal rows would otherwise be compared with each other
_ROUNDING = 1e-9  # of squared distances in float64, as a fraction
_EQUAL = 1e-12  # largest squared distance of directions that differ by rounding in float32
_LARGEST_FRACTION = 0.25  # of the cells; the exact search is faster if more must be searched
_AFFORDABLE = 2**45  # n x n x (d + 128), to which time is about proportional, of the longest exact search on a CPU


Found = tuple[Int64[Tensor, " q"], Float32[Tensor, "q k"], Int64[Tensor, "q k"]]  # rows and their neighbors


@dataclass(frozen=True, eq=False, repr=False)
class NeighborLists:
    """The nearest neighbors of each item of a set, without the item itself.

    Attributes:
        similarities: Cosine similarities (n, k) in descending order.
        indices: Indices (n, k) of the neighbors.
        recall: Fraction of the k nearest neighbors that the lists contain, measured on a sample of the items. 1 for an
            exact search.
    """

    similarities: Float32[Tensor, "n k"]
    indices: Int64[Tensor, "n k"]
    recall: float

    def __repr__(self) -> str:
        n, k = self.indices.shape
        return f"NeighborLists({n} items, {k} neighbors, recall={self.recall:.3f})"


def neighbor_lists(embeddings: Float[Tensor, "n d"], k: int, *, recall: float = 0.95, seed: int = 0) -> NeighborLists:
    """Find the k nearest neighbors of each item by cosine similarity; in large sets approximately.

    Sets with at most 2**37 multiplications n x n x d, such as 16,000 x 512, are searched exactly. In larger sets
    k-means divides the items into cells, and each item is compared with the items of the nearest cells only. The
    number of these cells is chosen such that the lists of a sample of the items have the given recall. If more than a
    quarter of the cells would be needed, the search is exact. On a CPU, sets such as 1,000,000 x 128 are not searched
    exactly unless `recall` is 1. The number of cells is then limited such that the search takes about ten minutes, and
    a warning gives the recall. Memory grows with n x k.

    Args:
        embeddings: Embeddings of any length, in memory or mapped from a file.
        k: Number of neighbors.
        recall: Fraction of the k nearest neighbors that approximate lists contain, above 0. 1 searches exactly,
            however long it takes.
        seed: Seed of the sample and of the cells.

    Returns:
        The lists, with the recall that was measured.

    Raises:
        ValueError: `k` is below 1 or not below the number of items, `recall` is not above 0 and at most 1, or
            embeddings are not finite.

    Example:
        >>> from udmlss.neighbors import neighbor_lists
        >>> lists = neighbor_lists(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), k=1)
        >>> lists
        NeighborLists(3 items, 1 neighbors, recall=1.000)
        >>> lists.indices.flatten()
        tensor([1, 2, 1])

    References:
        Video Google: A Text Retrieval Approach to Object Matching in Videos. Sivic, Zisserman. 2003.
        https://doi.org/10.1109/ICCV.2003.1238663. It introduced the inverted file, which is also an index of faiss.
    """
    check_embeddings(embeddings)
    check_integer("k", k, 1)
    check_number("recall", recall, most=1, above=0)
    check_integer("seed", seed, 0)
    check_k(k, len(embeddings) - 1)
    return find_lists(embeddings.detach(), int(k), recall=float(recall), seed=int(seed))


def find_lists(embeddings: Float[Tensor, "n d"], k: int, *, recall: float = 0.95, seed: int = 0) -> NeighborLists:
    """Return what `neighbor_lists` returns, for checked arguments."""
    rows = with_float64(embeddings)
    copies = limit_copies(rows, k + 1)
    lists = _lists_of(rows if copies is None else rows[copies[0]], k, recall, seed)
    similarities, indices = lists.similarities, lists.indices
    if copies is not None:
        retained, positions = copies
        similarities, indices = similarities[positions], retained[indices][positions]
    return NeighborLists(similarities.to(embeddings.device), indices.to(embeddings.device), lists.recall)


def _lists_of(embeddings: Float[Tensor, "n d"], k: int, recall: float, seed: int) -> NeighborLists:
    n, d = embeddings.shape
    if n * n * d <= _EXACT:
        return NeighborLists(*search(embeddings, k), recall=1.0)
    if recall == 1:
        return NeighborLists(*_search_all(embeddings, k, partial(_exact_part, k=k)), recall=1.0)
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.randperm(n, generator=generator)[:_SAMPLED].to(embeddings.device)
    _, nearest = without_self(search(embeddings, k + 1, embeddings[sampled]), sampled)
    distances = _squared_distances(embeddings, sampled, nearest)
    cells = _Cells.of(embeddings, generator)
    ranks = cells.ranks(sampled, nearest).cpu().where(distances > _EQUAL, 0)  # any of the equal rows will do
    n_cells = int(ranks.flatten().float().quantile(recall, interpolation="higher")) + 1
    is_on_cpu = search_device(embeddings.device).type == "cpu"
    affordable = _AFFORDABLE / (n * n * (d + 128)) if is_on_cpu else 1.0
    most = _LARGEST_FRACTION * min(1.0, affordable) * len(cells.members)
    if n_cells > most and affordable >= 1:
        return NeighborLists(*_search_all(embeddings, k, partial(_exact_part, k=k)), recall=1.0)
    in_cells = partial(cells.search_part, k=k, n_cells=min(n_cells, max(1, int(most))))
    similarities, indices = _search_all(embeddings, k, in_cells)
    found = _squared_distances(embeddings, sampled, indices[sampled])
    is_nearest = found <= distances.amax(dim=1, keepdim=True) * (1 + _ROUNDING) + _EQUAL
    lists = NeighborLists(similarities, indices, float(is_nearest.double().mean()))
    if n_cells > most:
        _warn_of_recall(lists.recall, recall)
    return lists


def _search_all(embeddings: Float[Tensor, "n d"], k: int, work: Work) -> Neighbors:
    """Return the neighbors of all rows, which the processes of `share_searches` search in parts."""
    similarities = embeddings.new_empty(len(embeddings), k, dtype=torch.float32)
    indices = torch.empty(len(embeddings), k, dtype=torch.int64, device=embeddings.device)

    def store(rows: Int64[Tensor, " q"], found: Float32[Tensor, "q k"], neighbors: Int64[Tensor, "q k"]) -> None:
        similarities[rows], indices[rows] = found, neighbors

    share = current_share()
    if share is not None and embeddings.dtype == torch.float32:  # the type of the embeddings of a model
        share(embeddings, work, store)
    else:
        for found in work(embeddings, 0, 1):
            store(*found)
    return similarities, indices


def _exact_part(embeddings: Float[Tensor, "n d"], part: int, n_parts: int, *, k: int) -> Iterator[Found]:
    for chunk, found in search_in_chunks(embeddings, k, None, part=part, n_parts=n_parts):
        yield torch.arange(chunk.start, chunk.stop, device=embeddings.device), *found


def _warn_of_recall(found: float, requested: float) -> None:
    warnings.warn(
        f"The lists contain {found:.1%} of the nearest neighbors, not {requested:.0%}, because a search with "
        "that recall would take too long on a CPU. Reduce the dimension of the embeddings, or search on a GPU.",
        stacklevel=5,
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """A partition of rows into cells of near rows.

    Attributes:
        centers: Center of each cell.
        labels: Cell of each row.
        members: Rows of each cell.
    """

    centers: Float32[Tensor, "c d"]
    labels: Int64[Tensor, " n"]
    members: tuple[Int64[Tensor, " _"], ...]  # of any length each

    @classmethod
    def of(cls, embeddings: Float[Tensor, "n d"], generator: torch.Generator) -> "_Cells":
        """Divide rows by k-means of a sample; cells that are much larger than the mean are cut."""
        n = len(embeddings)
        n_cells = int(_CELLS * n**0.5)
        device, nearest_centers = euclidean_search(embeddings.device)
        sampled = torch.randperm(n, generator=generator)[: _ROWS_PER_CELL * n_cells].to(embeddings.device)
        rows = unit_length(embeddings[sampled]).to(device)
        origin = rows.mean(dim=0)  # float32 would round differences away far from the origin
        centers = _k_means(rows.sub_(origin), n_cells, nearest_centers)
        labels = [
            nearest_centers(unit_length(embeddings[part]).to(device).sub_(origin), centers, 1)[1][:, 0]
            for part in row_slices(embeddings)
        ]
        return cls._cut(torch.cat(labels).to(embeddings.device), centers.to(embeddings.device))

    @classmethod
    def _cut(cls, labels: Int64[Tensor, " n"], centers: Float32[Tensor, "c d"]) -> "_Cells":
        order = labels.argsort(stable=True)
        sizes = labels.bincount(minlength=len(centers))
        positions = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[labels[order]]
        parts = positions // (_LARGEST_CELL * len(labels) // len(centers) + 1)
        keys, numbers, counts = torch.unique_consecutive(
            labels[order] + len(centers) * parts, return_inverse=True, return_counts=True
        )
        cells = torch.empty_like(labels)
        cells[order] = numbers
        return cls(centers[keys % len(centers)], cells, order.split(counts.tolist()))

    def ranks(self, rows: Int64[Tensor, " q"], neighbors: Int64[Tensor, "q k"]) -> Int64[Tensor, "q k"]:
        """Return how many other cells are as near to the cell of each row as the cell of each neighbor, or nearer."""
        distances = self._distances(self.labels[rows])
        own = distances.gather(1, self.labels[neighbors])
        return torch.searchsorted(distances.sort(dim=1).values, own, right=True) - 1

    def _distances(self, cells: Int64[Tensor, " q"]) -> Float32[Tensor, "q c"]:
        distances = torch.cdist(self.centers[cells], self.centers)
        return distances.scatter_(1, cells.unsqueeze(1), -1)  # a cell is nearest to itself also among equal centers

    def search_part(
        self, embeddings: Float[Tensor, "n d"], part: int, n_parts: int, *, k: int, n_cells: int
    ) -> Iterator[Found]:
        """Yield the rows of a part of the cells, with their k nearest neighbors within the nearest cells."""
        sizes = torch.tensor([len(rows) for rows in self.members])
        for rows in self.members[part::n_parts]:
            order = self._distances(self.labels[rows[:1]])[0].argsort().cpu()
            n_needed = int((sizes[order].cumsum(0) <= k).sum()) + 1  # small cells may have fewer than k neighbors
            candidates = torch.cat([self.members[each] for each in order[: max(n_cells, n_needed)].tolist()])
            own = torch.arange(len(rows)).to(embeddings.device)  # the rows of the cell are the first candidates
            found = search(embeddings[candidates], k + 1, embeddings[rows])
            similarities, local = without_self(found, own)
            yield rows, similarities, candidates[local]


def _k_means(rows: Float32[Tensor, "m d"], n_clusters: int, nearest_centers: Search) -> Float32[Tensor, "c d"]:
    """Return the centers of a few iterations of k-means; empty clusters share the center of all rows."""
    centers = rows[:n_clusters]
    for _ in range(_ITERATIONS):
        centers = group_means(rows, nearest_centers(rows, centers, 1)[1][:, 0], n_clusters)
    return centers


def _squared_distances(
    embeddings: Float[Tensor, "n d"], rows: Int64[Tensor, " q"], neighbors: Int64[Tensor, "q k"]
) -> Float64[Tensor, "q k"]:
    """Return the squared distances between the directions of rows and of their neighbors, on the CPU."""
    own = unit_vectors(embeddings[rows])
    columns = [unit_vectors(embeddings[column]) - own for column in neighbors.T]
    return torch.stack([differences.square_().sum(dim=1) for differences in columns], dim=1).cpu()
