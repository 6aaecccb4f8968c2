"""A clusterer that needs no number of clusters: communities of the graph of nearest neighbors."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from udmlss._checks import check_distinct, check_embeddings, check_integer, value_error
from udmlss.clustering.map_equation import map_equation_communities
from udmlss.neighbors.graph import shared_neighbor_graph
from udmlss.neighbors.search import search


class Communities:
    """Communities of the shared-neighbor graph by the two-level map equation, as a clusterer with `fit_predict`.

    The number of clusters follows from the embeddings. It falls as `n_neighbors` rises: a third of the number of images
    that you expect in a class is a value to start with.

    Args:
        n_neighbors: Number of nearest neighbors in the list of each image, at least 2 and below the number of images.
        min_cluster_size: Images of communities with fewer images get the label -1: unassigned.
        seed: Seed of the order in which images move between communities.

    Raises:
        ValueError: A number is out of its range. In `fit_predict`: embeddings are not finite, are all equal, or are
            not more than `n_neighbors`.

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

    def __init__(self, n_neighbors: int = 20, *, min_cluster_size: int = 2, seed: int = 0) -> None:
        check_integer("n_neighbors", n_neighbors, 2)
        check_integer("min_cluster_size", min_cluster_size, 1)
        check_integer("seed", seed, 0)
        self.n_neighbors = int(n_neighbors)
        self.min_cluster_size = int(min_cluster_size)
        self.seed = int(seed)

    def __repr__(self) -> str:
        return f"Communities(n_neighbors={self.n_neighbors}, min_cluster_size={self.min_cluster_size})"

    def fit_predict(self, X: Float[Tensor, "n d"] | NDArray[np.floating]) -> NDArray[np.int64]:  # noqa: N803 (scikit-learn's name)
        """Return the community of each row (n,), or -1 for rows of communities that are too small."""
        rows = torch.as_tensor(X)
        column_range = check_embeddings(rows, "X")
        if self.n_neighbors >= len(rows):
            rule = f"`n_neighbors={self.n_neighbors}` must be below the number of rows"
            raise value_error(rule, len(rows), "Lower it, or add images")
        check_distinct(column_range, len(rows))
        return self.labels_from_neighbors(search(rows, self.n_neighbors)[1])

    def labels_from_neighbors(self, indices: Int64[Tensor, "n k"]) -> NDArray[np.int64]:
        """Return the communities for lists of neighbors, as `udmlss.metrics.nearest` returns them."""
        found = map_equation_communities(shared_neighbor_graph(indices), seed=self.seed)
        sizes = np.bincount(found)
        return np.where(sizes[found] >= self.min_cluster_size, found, -1)
