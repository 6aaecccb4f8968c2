"""Pseudo-labels from clusters of embeddings."""

from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from scipy.sparse import csr_array
from torch import Tensor

from udmlss._checks import as_device, check_distinct, check_embeddings, check_integer, check_number, value_error
from udmlss._chunks import ColumnRange, group_means, storage_device
from udmlss.clustering.clusterer import Clusterer, ClusterFunction, labels_of_clusterer, n_clusters_or_clusterer
from udmlss.clustering.communities import Communities, coarse_communities
from udmlss.clustering.jaccard_dbscan import JaccardDBSCAN
from udmlss.clustering.kmeans import check_count, cluster_rows
from udmlss.clustering.list_length import list_length_for
from udmlss.clustering.matching import agreement, match_clusters
from udmlss.clustering.reliability import label_margins
from udmlss.neighbors.approximate import find_lists
from udmlss.neighbors.backends import search_on
from udmlss.neighbors.graph import shared_neighbor_graph
from udmlss.neighbors.search import averages_of_lists, check_n_neighbors
from udmlss.types import PseudoLabels

_IMAGES_PER_CLUSTER = 50  # assumed for a clusterer whose number of clusters is not known in advance


class ClusterPseudoLabeler:
    """Pseudo-labels from clusters of the embeddings, once per round.

    `ClusterPseudoLabeler()` needs no number of clusters, `ClusterPseudoLabeler(100)` runs k-means with 100. Clusters
    retain their ids from round to round, as `match_ids` describes. From the second round on, k-means starts from the
    means of the previous clusters in the new embeddings. If the number of images changes, ids are not matched in that
    round.

    Args:
        n_clusters: Number of clusters k of k-means, at least 2. Alternatively the clusterer itself, as in
            `ClusterPseudoLabeler(HDBSCAN())`. None finds `Communities`, whose number follows from the embeddings.
        images_per_cluster: Typical number of images per class, for the communities. None chooses the length of their
            lists of neighbors from the embeddings of the first round.
        clusterer: Clusterer that is used instead: an object with scikit-learn's `fit_predict`, of which a fresh copy
            receives a NumPy array (n, d) in every round, or a function from a tensor (n, d) to labels (n,), which must
            not write to the tensor. Labels are integers in any order; a negative label means that the image is
            unassigned.
        max_iter: Maximum number of iterations of k-means in a round.
        warm_start: Whether k-means starts from the clusters of the previous round. False starts from scratch.
        average_neighbors: Number of nearest neighbors that each embedding is averaged with before clustering, with
            weights that fall with the rank. This moves embeddings between two clusters into one of them. Communities
            search the averages for neighbors, too. None clusters the embeddings themselves.
        reliability: Whether the reliability of each label is also computed for k-means and for a clusterer, which
            takes a search for neighbors. For communities it is always computed.
        unassigned_fraction: Fraction, in 0..0.9, of the assigned images, those with the least reliable labels, that
            get the label -1. 0 does not change the labels.
        coarse: Whether to find coarse clusters, too, each of several clusters: batches then hold no negatives from the
            same coarse cluster. They are communities of the graph of clusters. If there is only one,
            `PseudoLabels.coarse_labels` is None.
        device: Device on which the embeddings are clustered, such as "cuda". They are moved to a GPU if they take at
            most an eighth of its memory, and otherwise in parts. None clusters them on their own device, and in `fit`
            on the model's.
        seed: Seed of the initial centers of k-means, of the communities, and of the approximate search for neighbors.
            Any other clusterer has a seed of its own. None uses the seed of `fit`, and 0 outside of `fit`.

    Raises:
        ValueError: Several of `n_clusters`, `images_per_cluster` and `clusterer` are given, a number is out of its
            range, or this machine does not have the device.
        TypeError: `clusterer` is neither a function nor an object with `fit_predict`.

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released code starts from the centers of the previous embeddings and
        does not match ids.

        Averages of neighbors: Three things everyone should know to improve object retrieval. Arandjelovic, Zisserman.
        2012. https://doi.org/10.1109/CVPR.2012.6248018. The paper averages the images of a searched database.

    Example:
        >>> labeler = ClusterPseudoLabeler(2)
        >>> labeler.label(torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]])).sizes
        tensor([2, 2])
    """

    def __init__(
        self,
        n_clusters: int | Clusterer | ClusterFunction | None = None,
        *,
        images_per_cluster: int | None = None,
        clusterer: Clusterer | ClusterFunction | None = None,
        max_iter: int = 25,
        warm_start: bool = True,
        average_neighbors: int | None = None,
        reliability: bool = False,
        unassigned_fraction: float = 0.0,
        coarse: bool = False,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        self.n_clusters, self.clusterer = n_clusters_or_clusterer(n_clusters, images_per_cluster, clusterer)
        check_integer("max_iter", max_iter, 1)
        if average_neighbors is not None:
            check_integer("average_neighbors", average_neighbors, 1)
        check_number("unassigned_fraction", unassigned_fraction, 0, 0.9)
        if seed is not None:
            check_integer("seed", seed, 0)
        self.max_iter = int(max_iter)
        self.warm_start = warm_start
        self.average_neighbors = None if average_neighbors is None else int(average_neighbors)
        self.reliability, self.coarse = reliability, coarse
        self.unassigned_fraction = float(unassigned_fraction)
        self.device = None if device is None else as_device(device)
        self.seed = None if seed is None else int(seed)
        self._default_seed = 0
        self._round = 0
        self._previous: PseudoLabels | None = None
        self._n_neighbors: int | None = None  # of communities, chosen in the first round

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_clusters or self.clusterer!r})"

    def label(self, embeddings: Float[Tensor, "n d"]) -> PseudoLabels:
        """Cluster the embeddings of one round.

        Args:
            embeddings: Embeddings of all images, in the same order in every round, of any floating type and on any
                device. k-means reads them one slice at a time, so that they may be mapped from a file that is larger
                than memory. `average_neighbors` and an object with `fit_predict` need a copy in float32.

        Returns:
            The clusters, on the CPU. `agreement` is None in the first round and if the number of images changed.

        Raises:
            ValueError: Embeddings are not finite, are all equal, or are fewer than `n_clusters` or
                `average_neighbors` requires; or there are fewer than two clusters.
        """
        column_range = check_embeddings(embeddings)
        self.check_size(len(embeddings))
        if len(embeddings) > 1:
            check_distinct(column_range, len(embeddings))
        embeddings = embeddings.detach()
        if self.device is not None:
            embeddings = embeddings.to(storage_device(embeddings.shape, self.device))
        previous = self._previous
        if previous is not None and len(previous.labels) != len(embeddings):
            previous = None
        with nullcontext() if self.device is None else search_on(self.device):
            labels, graph, n_neighbors = self._cluster(embeddings, column_range, previous)
        reliability = None if graph is None else label_margins(graph, labels)
        if reliability is not None and self.unassigned_fraction:
            labels = _without_least_reliable(labels, reliability, self.unassigned_fraction)
        self._check_clusters(labels)
        groups = self._coarse_clusters(graph, labels) if self.coarse and graph is not None else None
        previous_ids = None
        if previous is not None:
            labels, previous_ids = match_clusters(labels, previous.labels)
        sizes = labels[labels >= 0].bincount()
        self._previous = PseudoLabels(
            labels=labels,
            centers=group_means(embeddings, labels, len(sizes), column_range.sum_dtype).cpu(),
            sizes=sizes,
            agreement=None if previous is None else agreement(labels, previous.labels),
            reliability=reliability,
            coarse_labels=groups,
            previous_ids=previous_ids,
        )
        self._n_neighbors = n_neighbors
        self._round += 1
        return self._previous

    def set_default_seed(self, seed: int) -> None:
        """Set the seed that is used if `seed` is None."""
        self._default_seed = seed

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds, the clusters of the last one, and the number of neighbors of communities."""
        previous = None if self._previous is None else dict(vars(self._previous))
        return {"round": self._round, "previous": previous, "n_neighbors": self._n_neighbors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._round, self._n_neighbors = state["round"], state["n_neighbors"]
        self._previous = None if state["previous"] is None else PseudoLabels(**state["previous"])

    def check_size(self, n: int) -> None:
        """Raise ValueError if n images are too few for the settings."""
        if self.n_clusters is not None:
            check_count(self.n_clusters, n)
        if isinstance(self.clusterer, Communities | JaccardDBSCAN):
            self.clusterer.check_size(n)
        if self.average_neighbors is not None:
            check_n_neighbors("average_neighbors", self.average_neighbors, n)

    @property
    def _used_seed(self) -> int:
        return self._default_seed if self.seed is None else self.seed

    def _cluster(
        self, embeddings: Float[Tensor, "n d"], column_range: ColumnRange, previous: PseudoLabels | None
    ) -> tuple[Int64[Tensor, " n"], csr_array | None, int | None]:
        """Return the labels, the graph from which their reliability is computed, and the number of neighbors.

        The graph is None if it is not needed, and the number of neighbors is that of communities, or else None.
        """
        length = self._graph_length(len(embeddings))
        longest = max(length, self.average_neighbors or 0)
        indices = find_lists(embeddings, longest, seed=self._used_seed).indices if longest else None
        if self.average_neighbors is not None and indices is not None:
            embeddings = averages_of_lists(embeddings, indices[:, : self.average_neighbors])
            column_range = ColumnRange.of(embeddings)
            check_distinct(column_range, len(embeddings))
        if isinstance(self.clusterer, Communities):
            return self._communities(self.clusterer, embeddings, previous)
        graph = shared_neighbor_graph(indices[:, :length]) if length and indices is not None else None
        if self.n_clusters is None:
            return labels_of_clusterer(self.clusterer, embeddings), graph, None
        return self._k_means(self.n_clusters, embeddings, column_range, previous), graph, None

    def _graph_length(self, n: int) -> int:
        """Return the length of the lists of the graph, or 0 if there is none or if communities find their own."""
        is_needed = self.reliability or self.unassigned_fraction or self.coarse
        if isinstance(self.clusterer, Communities) or not is_needed:
            return 0
        size = _IMAGES_PER_CLUSTER if self.n_clusters is None else n // self.n_clusters
        return min(list_length_for(size), n - 1)

    def _k_means(
        self,
        n_clusters: int,
        embeddings: Float[Tensor, "n d"],
        column_range: ColumnRange,
        previous: PseudoLabels | None,
    ) -> Int64[Tensor, " n"]:
        start = None
        if self.warm_start and previous is not None:
            start = group_means(embeddings, previous.labels, previous.n_clusters, column_range.sum_dtype)[:n_clusters]
        return cluster_rows(
            embeddings,
            column_range if start is None else column_range.union(ColumnRange.of(start)),
            n_clusters,
            start=start,
            max_iter=self.max_iter,
            seed=self._used_seed + self._round,
        )

    def _check_clusters(self, labels: Int64[Tensor, " n"]) -> None:
        sizes = labels[labels >= 0].bincount().tolist()
        if len(sizes) >= 2:  # noqa: PLR2004 (a metric loss needs a positive and a negative)
            return
        remedy = "Let the clusterer make more and smaller clusters, or reduce the embeddings by PCA first"
        if isinstance(self.clusterer, Communities):
            remedy = "Pass a smaller `images_per_cluster`, or a number of clusters, as in ClusterPseudoLabeler(100)"
        if self.unassigned_fraction:
            remedy = "Lower `unassigned_fraction`. " + remedy
        found = f"sizes {sizes} with {int((labels < 0).sum())} of {len(labels)} images unassigned"
        raise value_error("A round needs at least 2 clusters", found, remedy)

    def _coarse_clusters(self, graph: csr_array, labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"] | None:
        """Return coarse clusters, or None if all clusters from which batches are sampled belong to the same one."""
        groups = coarse_communities(graph, labels, seed=self._used_seed)
        is_assigned = labels >= 0
        is_sampled = is_assigned & (labels[is_assigned].bincount() > 1)[labels]  # the label -1 is not assigned
        return groups if len(groups[is_sampled].unique()) > 1 else None

    def _communities(
        self, settings: Communities, embeddings: Float[Tensor, "n d"], previous: PseudoLabels | None
    ) -> tuple[Int64[Tensor, " n"], csr_array, int]:
        """Find communities, from lists whose length is chosen in the first round and then retained."""
        communities = copy(settings)
        if communities.list_length is None and previous is not None:
            communities.n_neighbors = self._n_neighbors
        if communities.seed is None:
            communities.seed = self._used_seed
        found = communities.cluster(embeddings)
        # communities that are too small leave gaps in the labels, which `from_labels` closes
        return PseudoLabels.from_labels(found).labels, communities.graph_, communities.n_neighbors_


def _without_least_reliable(
    labels: Int64[Tensor, " n"], reliability: Float[Tensor, " n"], fraction: float
) -> Int64[Tensor, " n"]:
    labels = labels.clone()
    n_unassigned = int(fraction * int((labels >= 0).sum()))
    labels[reliability.argsort(stable=True)[:n_unassigned]] = -1  # NaN is last
    return PseudoLabels.from_labels(labels).labels
