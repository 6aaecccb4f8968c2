"""A clusterer that needs no number of clusters: communities of the graph of nearest neighbors."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from udmlss._checks import as_rows, check_distinct, check_embeddings, check_integer, collapse_error, value_error
from udmlss._chunks import row_slices
from udmlss.clustering.list_length import LARGEST_SAMPLE, LENGTHS, choose_list_length, list_length_for
from udmlss.clustering.map_equation import map_equation_communities
from udmlss.neighbors.approximate import find_lists
from udmlss.neighbors.graph import shared_neighbor_graph
from udmlss.neighbors.search import unit_length

_ROUNDING = 2**-20  # difference between components of unit vectors in float32 that are equal up to rounding


class Communities:
    """Communities of the shared-neighbor graph by the two-level map equation, as a clusterer with `fit_predict`.

    Each image has a list of its nearest neighbors. The number of clusters follows from the embeddings and from the
    length of the lists: longer lists find fewer and larger clusters. Without arguments the length is chosen from the
    embeddings.

    Args:
        n_neighbors: Length of the lists, at least 2 and below the number of images. None derives it from
            `images_per_cluster`, or chooses it from the embeddings.
        images_per_cluster: Typical number of images per class, at least 2 and at most half of the number of images. The
            lists get a third of this number plus 2, at most 64. None does not use it.
        min_cluster_size: Images of communities with fewer images get the label -1: unassigned. The other labels then
            need not be consecutive.
        seed: Seed of the order in which images move between communities, of the approximate search for neighbors, and
            of the random points and the sample by which the length of the lists is chosen. None uses the seed of the
            `ClusterPseudoLabeler`, and 0 outside of it.

    Attributes:
        n_neighbors_: Length of the lists in the last `fit_predict`.
        graph_: The shared-neighbor graph (n, n) of the last `fit_predict`.

    Raises:
        ValueError: A number is out of its range, or both `n_neighbors` and `images_per_cluster` are given. In
            `fit_predict`: embeddings are not finite, all have the same direction up to rounding, or are not more than
            `n_neighbors`.

    Example:
        >>> rows = torch.eye(3).repeat_interleave(6, dim=0) + 0.1 * torch.rand(18, 3)
        >>> Communities(n_neighbors=3).fit_predict(rows)
        array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])

    References:
        Maps of random walks on complex networks reveal community structure. Rosvall, Bergstrom. 2008.
        https://doi.org/10.1073/pnas.0706851105

        Cluster Contrast for Unsupervised Person Re-Identification. Dai et al. 2021. https://arxiv.org/abs/2103.11568.
        The paper clusters a graph of similarities above a threshold by the same equation.
    """

    n_neighbors_: int
    graph_: csr_array

    def __init__(
        self,
        n_neighbors: int | None = None,
        *,
        images_per_cluster: int | None = None,
        min_cluster_size: int = 2,
        seed: int | None = None,
    ) -> None:
        if n_neighbors is not None and images_per_cluster is not None:
            rule = "At most one of `n_neighbors` and `images_per_cluster` must be given"
            raise value_error(rule, "both", "Pass `images_per_cluster`, from which the number of neighbors follows")
        if n_neighbors is not None:
            check_integer("n_neighbors", n_neighbors, 2)
        if images_per_cluster is not None:
            check_integer("images_per_cluster", images_per_cluster, 2)
        check_integer("min_cluster_size", min_cluster_size, 1)
        if seed is not None:
            check_integer("seed", seed, 0)
        self.n_neighbors = None if n_neighbors is None else int(n_neighbors)
        self.images_per_cluster = None if images_per_cluster is None else int(images_per_cluster)
        self.min_cluster_size = int(min_cluster_size)
        self.seed = None if seed is None else int(seed)

    def __repr__(self) -> str:
        names = ("n_neighbors", "images_per_cluster", "min_cluster_size")
        given = ", ".join(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None)
        return f"Communities({given})"

    def fit_predict(self, X: Float[Tensor, "n d"] | NDArray[np.floating]) -> NDArray[np.int64]:  # noqa: N803 (scikit-learn's name)
        """Return the community of each row (n,), or -1 for rows of communities that are too small."""
        rows = as_rows(X, "X")
        column_range = check_embeddings(rows, "X")
        self.check_size(len(rows))
        check_distinct(column_range, len(rows))
        return self.cluster(rows.detach())

    def cluster(self, rows: Float[Tensor, "n d"]) -> NDArray[np.int64]:
        """Return the labels of `fit_predict` for rows that have been checked; their neighbors are searched once."""
        _check_directions(rows)
        length, n, seed = self.list_length, len(rows), self.seed or 0
        if length is None and n > LARGEST_SAMPLE:
            length = choose_list_length(rows, seed=seed)
        indices = find_lists(rows, length or min(LENGTHS[-1], n - 1), seed=seed).indices
        self.n_neighbors_ = length or choose_list_length(rows, indices=indices, seed=seed)
        return self.labels_from_neighbors(indices[:, : self.n_neighbors_])

    def labels_from_neighbors(self, indices: Int64[Tensor, "n k"]) -> NDArray[np.int64]:
        """Return the communities for lists of neighbors, as `udmlss.neighbors.nearest` returns them."""
        self.graph_ = shared_neighbor_graph(indices)
        found = map_equation_communities(self.graph_, seed=self.seed or 0)
        sizes = np.bincount(found)
        return np.where(sizes[found] >= self.min_cluster_size, found, -1)

    def check_size(self, n: int) -> None:
        """Raise ValueError if n images are too few for the settings."""
        if self.images_per_cluster is not None and self.images_per_cluster > n // 2:
            rule = f"`images_per_cluster={self.images_per_cluster}` must be at most half of the number of images"
            raise value_error(rule, f"{n} images", "Lower it, or add images")
        length = self.list_length or LENGTHS[0]
        if length >= n:
            name = "The number of neighbors" if self.n_neighbors is None else "`n_neighbors`"
            raise value_error(f"{name}, {length}, must be below the number of images", n, "Lower it, or add images")

    @property
    def list_length(self) -> int | None:
        """Length of the lists by the settings, or None if it is chosen from the embeddings."""
        if self.images_per_cluster is not None:
            return list_length_for(self.images_per_cluster)
        return self.n_neighbors


def _check_directions(rows: Float[Tensor, "n d"]) -> None:
    """Raise ValueError if the directions of all rows differ at most by rounding, so that their neighbors are random."""
    first = unit_length(rows[:1])
    for part in row_slices(rows):
        if float((unit_length(rows[part]) - first).abs().max()) > _ROUNDING:
            return
    raise collapse_error(f"{len(rows)} rows with the same direction up to rounding")


def coarse_communities(graph: csr_array, labels: Int64[Tensor, " n"], *, seed: int = 0) -> Int64[Tensor, " n"]:
    """Find groups of clusters between which a random walk on the graph seldom moves.

    This is the second level of the map equation: the nodes are the clusters, and the weight between two of them is the
    sum of the weights between their items.

    Args:
        graph: Symmetric matrix (n, n) of weights, as `shared_neighbor_graph` returns it.
        labels: Cluster of each item, or -1.
        seed: Seed of the order in which clusters move between groups.

    Returns:
        The group of each item, or -1.
    """
    clusters = labels.numpy(force=True)
    rows = np.flatnonzero(clusters >= 0)
    shape = (len(clusters), int(clusters.max()) + 1)
    members = csr_array((np.ones(len(rows)), (rows, clusters[rows])), shape=shape)
    between = (members.T @ graph @ members).tocsr()
    between.setdiag(0)
    between.eliminate_zeros()
    groups = map_equation_communities(between, seed=seed)
    return torch.from_numpy(np.where(clusters >= 0, groups[clusters], -1))
