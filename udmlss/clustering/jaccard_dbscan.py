"""DBSCAN on the k-reciprocal Jaccard distance."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array
from sklearn.cluster import DBSCAN
from sklearn.neighbors import sort_graph_by_row_values
from torch import Tensor

from udmlss._checks import as_rows, check_distinct, check_embeddings, check_integer, check_number, value_error
from udmlss.neighbors.approximate import find_lists
from udmlss.neighbors.copies import limit_copies
from udmlss.neighbors.reciprocal import k_reciprocal_similarity


class JaccardDBSCAN:
    """DBSCAN on the k-reciprocal Jaccard distance, as a clusterer with `fit_predict`.

    This is the clusterer of unsupervised re-identification, for comparison with published results. The number of
    clusters follows from `eps`, and a small change of `eps` may merge most clusters into one. `Communities` has no
    such threshold.

    Args:
        eps: Largest distance of two neighbors, above 0 and below 1, which is the distance of items without common
            neighbors. The default is that of Self-paced Contrastive Learning and Cluster Contrast.
        k1: Length of the lists of neighbors, as in `k_reciprocal_similarity`.
        k2: Number of nearest items whose neighbors are averaged, as in `k_reciprocal_similarity`.
        min_samples: Number of items, including the item itself, within `eps` of an item at the core of a cluster.

    Raises:
        ValueError: A number is out of its range. In `fit_predict`: embeddings are not finite, are all equal, or are
            fewer than `k1` or `k2`.

    Example:
        >>> from udmlss.clustering import JaccardDBSCAN
        >>> rows = torch.eye(3).repeat_interleave(6, dim=0) + 0.1 * torch.rand(18, 3)
        >>> JaccardDBSCAN(k1=6, k2=2).fit_predict(rows)
        array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])

    References:
        Self-paced Contrastive Learning with Hybrid Memory for Domain Adaptive Object Re-ID. Ge et al. 2020.
        https://arxiv.org/abs/2006.02713
    """

    def __init__(self, eps: float = 0.6, *, k1: int = 30, k2: int = 6, min_samples: int = 4) -> None:
        check_number("eps", eps, above=0)
        if not eps < 1:
            raise value_error("`eps` must be below 1, the distance of items without common neighbors", eps, "Lower it")
        check_integer("k1", k1, 2)
        check_integer("k2", k2, 1)
        check_integer("min_samples", min_samples, 1)
        self.eps = float(eps)
        self.k1 = int(k1)
        self.k2 = int(k2)
        self.min_samples = int(min_samples)

    def __repr__(self) -> str:
        return f"JaccardDBSCAN(eps={self.eps}, k1={self.k1}, k2={self.k2}, min_samples={self.min_samples})"

    def fit_predict(self, X: Float[Tensor, "n d"] | NDArray[np.floating]) -> NDArray[np.int64]:  # noqa: N803 (scikit-learn's name)
        """Return the cluster of each row (n,), or -1 for rows that are far from all clusters."""
        rows = as_rows(X, "X")
        column_range = check_embeddings(rows, "X")
        self.check_size(len(rows))
        check_distinct(column_range, len(rows))
        # thousands of equal rows would all be neighbors of each other
        copies = limit_copies(rows, max(self.k1, self.k2, self.min_samples))
        if copies is None:
            return self._cluster(rows.detach())
        retained, positions = copies
        labels = self._cluster(rows[retained].detach())
        return np.asarray(labels[positions.numpy(force=True)])

    def check_size(self, n: int) -> None:
        """Raise ValueError if n rows are too few for the settings."""
        for name, k in (("k1", self.k1), ("k2", self.k2)):
            if k > n:
                raise value_error(f"`{name}={k}` must not exceed the number of rows", n, "Lower it, or add images")

    def _cluster(self, rows: Float[Tensor, "m d"]) -> NDArray[np.int64]:
        indices = find_lists(rows, max(self.k1, self.k2) - 1).indices
        similarities = k_reciprocal_similarity(rows, indices, k1=self.k1, k2=self.k2)
        distances = csr_array(similarities + eye_array(len(rows), format="csr"))
        distances.data = np.maximum(1 - distances.data, 0)  # rounding may leave a value just below zero
        distances = sort_graph_by_row_values(distances, warn_when_not_sorted=False)
        found = DBSCAN(eps=self.eps, min_samples=self.min_samples, metric="precomputed").fit_predict(distances)
        return np.asarray(found, dtype=np.int64)
