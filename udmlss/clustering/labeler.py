"""Embeddings to pseudo-labels, round after round."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch import Tensor

from udmlss._checks import check_embeddings, check_integer, check_not_collapsed, type_error, value_error
from udmlss.clustering.kmeans import SEEDS, check_seed, cluster_means, k_means
from udmlss.clustering.matching import agreement, match_ids
from udmlss.neighbors import average_with_neighbors
from udmlss.types import PseudoLabels


@runtime_checkable
class Clusterer(Protocol):
    """Anything with scikit-learn's `fit_predict`; a negative label means left out."""

    def fit_predict(self, X: Any, /) -> NDArray[np.integer[Any]]:  # noqa: ANN401, N803 (scikit-learn's signature)
        """Return the cluster of each row."""
        ...


class ClusterPseudoLabeler(ClusterMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Clusters of the embeddings as labels to train with.

    Each call of `label` is a round. From the second round on over the same images, k-means starts at the means that
    the last round's clusters have in the new embeddings, ids are matched to the last round's, and the agreement
    between the two rounds is measured. It is a scikit-learn clusterer as well: `fit`, `fit_predict`, `labels_`.

    Args:
        n_clusters: Number of clusters k of k-means. Leave it out when you give a `clusterer`.
        clusterer: Anything with scikit-learn's `fit_predict`, used instead of k-means: `HDBSCAN`,
            `AgglomerativeClustering`, `GaussianMixture`, ... A fresh copy runs in every round.
        max_iter: Most iterations of k-means in a round.
        warm_start: Start k-means from the last round's clusters.
        whiten_first: Dimensions to which the first round's embeddings are reduced by PCA-whitening and scaled to
            unit length before they are clustered. None leaves them as they are.
        average_neighbors: In every round cluster, in place of each embedding, the direction of the sum of it and of
            so many of those most similar to it, the farther the less: what lies between two groups is drawn into one
            of them. A search of all among all finds them. None clusters the embeddings as they are.
        device: Where to cluster: all embeddings are moved there, to "cuda" say. None is where they are; `fit` has them
            on the CPU.
        seed: Seed of what k-means++ draws and of PCA, from 0 and below 2**32; a `clusterer` has its own.

    Raises:
        ValueError: Neither or both of `n_clusters` and `clusterer` are given; `n_clusters` below 2; another seed.
        TypeError: `clusterer` has no `fit_predict`.

    Example:
        >>> labeler = ClusterPseudoLabeler(2)
        >>> pseudo = labeler.label(torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]))
        >>> pseudo.sizes
        tensor([2, 2])

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released code starts from stale centroids and lets ids and noise be;
        here ids are matched, and a first round on features of another dimension warms up the next one too.

        Averaging: Three things everyone should know to improve object retrieval. Arandjelovic, Zisserman. 2012.
        https://doi.org/10.1109/CVPR.2012.6248018. There for the images of a data base that is searched.
    """

    labels_: NDArray[np.int64]

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        clusterer: Clusterer | None = None,
        max_iter: int = 25,
        warm_start: bool = True,
        whiten_first: int | None = None,
        average_neighbors: int | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        _check_choice_of_clusterer(n_clusters, clusterer)
        check_integer("max_iter", max_iter, 1)
        if average_neighbors is not None:
            check_integer("average_neighbors", average_neighbors, 1)
        check_seed(seed)
        self.n_clusters = n_clusters
        self.clusterer = clusterer
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.whiten_first = whiten_first
        self.average_neighbors = average_neighbors
        self.device = device
        self.seed = seed
        self._round = 0
        self._last: PseudoLabels | None = None

    def label(self, embeddings: Float[Tensor, "n d"]) -> PseudoLabels:
        """Cluster the embeddings: one round.

        Args:
            embeddings: Embeddings of all images, in the same order in every round; of any floating type, on any
                device. k-means reads them where they are, also mapped from a file that is larger than memory;
                `whiten_first`, `average_neighbors` and a `clusterer` take a copy in float32.

        Returns:
            The clusters, on the CPU, with ids and agreement in relation to the last round over as many images.

        Raises:
            ValueError: Embeddings that are not finite, are all equal, are fewer than `n_clusters` or than
                `average_neighbors` needs, or fall into fewer than two clusters.
        """
        check_embeddings(embeddings)
        _check_choice_of_clusterer(self.n_clusters, self.clusterer)
        embeddings = embeddings.detach() if self.device is None else embeddings.detach().to(self.device)
        if len(embeddings) > 1:
            check_not_collapsed(embeddings)
        last = self._last if self._last is not None and len(self._last.labels) == len(embeddings) else None
        labels = self._cluster(self._prepared(embeddings), last)
        _check_clusters(labels)
        if last is not None:
            labels = match_ids(labels, last.labels)
        sizes = labels[labels >= 0].bincount()
        self._last = PseudoLabels(
            labels=labels,
            centers=cluster_means(embeddings, labels, len(sizes)).cpu(),
            sizes=sizes,
            agreement=None if last is None else agreement(labels, last.labels),
        )
        self._round += 1
        return self._last

    def fit(self, X: ArrayLike, y: object = None) -> "ClusterPseudoLabeler":  # noqa: ARG002, N803 (scikit-learn's signature)
        """Forget earlier rounds and cluster the rows of X; sets `labels_`."""
        self._round, self._last = 0, None
        self.labels_ = self.label(torch.as_tensor(np.asarray(X))).labels.numpy()
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what it knows of the rounds so far."""
        return {"round": self._round, "last": None if self._last is None else vars(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as if those had been its own rounds."""
        self._round = state["round"]
        self._last = None if state["last"] is None else PseudoLabels(**state["last"])

    def _prepared(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        if self.whiten_first is not None and self._round == 0:
            embeddings = _whiten(embeddings.cpu().float(), self.whiten_first, self.seed)
        return (
            embeddings if self.average_neighbors is None else average_with_neighbors(embeddings, self.average_neighbors)
        )

    def _cluster(self, embeddings: Float[Tensor, "n d"], last: PseudoLabels | None) -> Int64[Tensor, " n"]:
        if self.n_clusters is None:
            rows = embeddings.to("cpu", torch.float32, copy=True).numpy()
            found = clone(self.clusterer, safe=False).fit_predict(rows)
            return _compact(np.asarray(found))
        return k_means(
            embeddings,
            self.n_clusters,
            start=self._start(embeddings, last) if self.warm_start else None,
            max_iter=self.max_iter,
            seed=(self.seed + self._round) % SEEDS,
        )

    def _start(self, embeddings: Float[Tensor, "n d"], last: PseudoLabels | None) -> Float[Tensor, "j d"] | None:
        if last is not None:
            return cluster_means(embeddings, last.labels, last.n_clusters)[: self.n_clusters]
        centroids = None if self._last is None else self._last.centers
        if centroids is None or centroids.shape[1] != embeddings.shape[1]:
            return None
        return centroids[: self.n_clusters]


def _check_choice_of_clusterer(n_clusters: int | None, clusterer: object) -> None:
    if (n_clusters is None) == (clusterer is None):
        found = "neither" if clusterer is None else "both"
        raise value_error(
            "Give one of `n_clusters` and `clusterer`",
            found,
            "ClusterPseudoLabeler(100) runs k-means, ClusterPseudoLabeler(clusterer=HDBSCAN()) your own",
        )
    if n_clusters is not None:
        check_integer("n_clusters", n_clusters, 2)
    elif isinstance(clusterer, type) or not callable(getattr(clusterer, "fit_predict", None)):
        raise type_error(
            "`clusterer` must be an object with scikit-learn's `fit_predict`",
            f"{clusterer!r}",
            "Pass an instance, such as HDBSCAN(min_cluster_size=5, copy=True)",
        )


def _check_clusters(labels: Int64[Tensor, " n"]) -> None:
    sizes = labels[labels >= 0].bincount().tolist()
    if len(sizes) < 2:  # noqa: PLR2004 (a metric loss needs a positive and a negative)
        raise value_error(
            "A round needs at least 2 clusters",
            f"sizes {sizes} with {int((labels < 0).sum())} of {len(labels)} images left out",
            "Let the clusterer make more and smaller clusters, or reduce the embeddings by PCA first",
        )


def _compact(found: NDArray[np.integer[Any]]) -> Int64[Tensor, " n"]:
    """Renumber to 0..k-1, and to -1 whatever is negative (HDBSCAN says -1, -2 and -3)."""
    labels = np.full(len(found), -1, dtype=np.int64)
    labels[found >= 0] = np.unique(found[found >= 0], return_inverse=True)[1]
    return torch.from_numpy(labels)


def _whiten(embeddings: Float[Tensor, "n d"], dimensions: int, seed: int) -> Float[Tensor, "n e"]:
    most = min(embeddings.shape)
    if not 1 <= dimensions <= most:
        raise value_error(
            f"`whiten_first={dimensions}` must lie between 1 and the number of images and dimensions",
            f"embeddings of shape {tuple(embeddings.shape)}",
            f"Use at most {most}",
        )
    whitened = PCA(dimensions, whiten=True, random_state=seed).fit_transform(embeddings.numpy())
    return torch.from_numpy(normalize(np.nan_to_num(whitened)).astype(np.float32))
