"""Clusterers that users pass: objects with scikit-learn's `fit_predict`, and functions."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from udmlss._checks import as_labels, check_integer, type_error, value_error
from udmlss.clustering.communities import Communities
from udmlss.types import Labels, PseudoLabels


@runtime_checkable
class Clusterer(Protocol):
    """A clusterer with scikit-learn's `fit_predict`."""

    def fit_predict(self, X: NDArray[np.float32], /) -> Any:  # noqa: ANN401, N803 (scikit-learn's signature)
        """Return the cluster of each row (n,), where a negative label means that the row is unassigned."""
        ...


ClusterFunction = Callable[[Tensor], Labels | PseudoLabels]


def n_clusters_or_clusterer(n_clusters: Any, images_per_cluster: Any, clusterer: Any) -> tuple[int | None, Any]:  # noqa: ANN401
    """Return the number of clusters of k-means and None, or None and the clusterer."""
    settings = {"n_clusters": n_clusters, "images_per_cluster": images_per_cluster, "clusterer": clusterer}
    given = {name: value for name, value in settings.items() if value is not None}
    if len(given) > 1:
        raise value_error(
            "At most one of `n_clusters`, `images_per_cluster` and `clusterer` must be given",
            " and ".join(f"`{name}`" for name in given),
            "ClusterPseudoLabeler(100) runs k-means, ClusterPseudoLabeler(HDBSCAN()) another clusterer",
        )
    if n_clusters is None and clusterer is None:
        return None, Communities(images_per_cluster=images_per_cluster)
    one = n_clusters if clusterer is None else clusterer
    if not isinstance(one, type) and (has_fit_predict(one) or callable(one)):
        return None, one
    if clusterer is None and not isinstance(one, type):
        check_integer("n_clusters", one, 2)
        return int(one), None
    raise type_error(
        "`clusterer` must be an object with scikit-learn's `fit_predict`, or a function of embeddings",
        f"{one!r}",
        "Pass an instance, such as HDBSCAN(min_cluster_size=5, copy=True)",
    )


def has_fit_predict(clusterer: object) -> bool:
    """Return whether an object clusters as clusterers of scikit-learn do."""
    return callable(getattr(clusterer, "fit_predict", None))


def labels_of_clusterer(clusterer: Any, embeddings: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:  # noqa: ANN401 (an object or a function)
    """Return the labels that a fresh copy of a clusterer or a function finds, without gaps."""
    if has_fit_predict(clusterer):
        rows = embeddings.to("cpu", torch.float32, copy=True).numpy()  # a clusterer may write to its input
        found = clone(clusterer, safe=False).fit_predict(rows)
    else:
        found = clusterer(embeddings)
    found = found.labels if isinstance(found, PseudoLabels) else found
    return PseudoLabels.from_labels(as_labels(found, len(embeddings), "labels of the clusterer")).labels
