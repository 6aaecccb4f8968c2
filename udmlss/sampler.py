"""Batches of P clusters with K images each."""

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler

from udmlss._checks import as_labels, check_integer, value_error
from udmlss.types import Labels


class PseudoLabelSampler(BatchSampler):
    """Batches of P clusters with K images each, as lists of indices for the `batch_sampler` of a `DataLoader`.

    All clusters are sampled equally often, whatever their size: the order of the clusters is a sequence of random
    permutations of them, and a batch never contains a cluster twice. Each time a cluster is sampled it contributes its
    next K images, in an order that is shuffled once per epoch and repeated when it is exhausted. An image occurs twice
    in a batch only if its cluster has fewer than K images. The images of a cluster are adjacent in a batch.

    With several views each image is repeated in its batch, so that it is augmented several times. The views of an
    image are correct positives even if its cluster is wrong.

    With coarse labels, a batch holds at most one of the clusters of each coarse cluster, so that no two images of a
    coarse cluster are negatives of each other in any loss that compares the images of a batch. This holds for the
    batches of all ranks in a step together. Clusters are then sampled equally often only as far as this allows it.

    The batches are a pure function of the arguments and the epoch. With several ranks the batches are distributed
    round-robin, so that all ranks together see the batches of a single process, and each rank gets the same number.

    Args:
        labels: Cluster of each image. Images with a negative label are never sampled.
        clusters_per_batch: Number of clusters P in a batch. The default is the published one.
        samples_per_cluster: Number of images K of each cluster. The default is the published one. With one view it is
            at least 2, so that every image has a positive.
        coarse_labels: Coarse cluster of each image, which consists of whole clusters. None has no coarse clusters.
        views: Number of times that each sampled image occurs in its batch, which has P * K * views images.
        n_batches: Number of batches of an epoch on each rank. None divides the number of images in the sampled
            clusters by the number of images in the batches of all ranks.
        min_cluster_size: Clusters with fewer images are never sampled.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        ValueError: There are fewer than `clusters_per_batch` clusters or coarse clusters of `min_cluster_size` images,
            a cluster lies in several coarse clusters, the labels are not one-dimensional, or a number is out of range.
        TypeError: The labels are not integers.

    Example:
        >>> sampler = PseudoLabelSampler([0, 0, 1, 1, -1], clusters_per_batch=2, samples_per_cluster=2)
        >>> [sorted(batch) for batch in sampler]
        [[0, 1, 2, 3]]

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released sampler samples clusters and images independently for every
        batch. This sampler uses permutations, so that an epoch covers all of them equally.
    """

    def __init__(
        self,
        labels: Labels,
        clusters_per_batch: int = 16,
        samples_per_cluster: int = 5,
        *,
        coarse_labels: Labels | None = None,
        views: int = 1,
        n_batches: int | None = None,
        min_cluster_size: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_integer("clusters_per_batch", clusters_per_batch, 2)
        check_views(views, samples_per_cluster)
        check_integer("min_cluster_size", min_cluster_size, 1)
        if n_batches is not None:
            check_integer("n_batches", n_batches, 1)
        check_integer("seed", seed, 0)
        check_integer("world_size", world_size, 1)
        check_integer("rank", rank, 0, world_size - 1)
        self._labels = as_labels(labels).numpy(force=True).copy()  # The caller may change its labels in place
        clusters, sizes = np.unique(self._labels[self._labels >= 0], return_counts=True)
        is_large = sizes >= min_cluster_size
        self._clusters = clusters[is_large]
        _check_enough_clusters(sizes, len(self._clusters), clusters_per_batch, min_cluster_size)
        self._groups = self._clusters
        if coarse_labels is not None:
            self._groups = self._coarse_clusters(coarse_labels, clusters_per_batch)
        self._sizes = sizes[is_large]
        self.clusters_per_batch = int(clusters_per_batch)
        self.samples_per_cluster = int(samples_per_cluster)
        self.views = int(views)
        self.batch_size = self.clusters_per_batch * self.samples_per_cluster * self.views
        self.seed, self.rank, self.world_size = int(seed), int(rank), int(world_size)
        self.n_batches = int(n_batches or max(1, self._sizes.sum() // (self.batch_size * self.world_size)))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, a non-negative integer that seeds the order together with `seed`."""
        check_integer("epoch", epoch, 0)
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        images = self._shuffled_images(generator)
        clusters = self._cluster_order(generator)
        positions = _times_before(clusters)[:, None] * self.samples_per_cluster + np.arange(self.samples_per_cluster)
        starts = np.cumsum(self._sizes) - self._sizes
        sampled = images[starts[clusters, None] + positions % self._sizes[clusters, None]]
        batches = sampled.repeat(self.views, axis=1).reshape(-1, self.batch_size)[self.rank :: self.world_size]
        yield from batches.tolist()

    def __repr__(self) -> str:
        return (
            f"PseudoLabelSampler(n_clusters={len(self._clusters)}, clusters_per_batch={self.clusters_per_batch}, "
            f"samples_per_cluster={self.samples_per_cluster}, views={self.views}, n_batches={self.n_batches})"
        )

    def _shuffled_images(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the images of the sampled clusters, grouped by cluster and shuffled within each."""
        shuffled = generator.permutation(np.flatnonzero(np.isin(self._labels, self._clusters)))
        return shuffled[np.argsort(self._labels[shuffled], kind="stable")]

    def _coarse_clusters(self, coarse_labels: Labels, clusters_per_batch: int) -> NDArray[np.int64]:
        """Return the coarse cluster of each sampled cluster."""
        coarse = as_labels(coarse_labels, len(self._labels), "coarse_labels").numpy(force=True)
        is_sampled = np.isin(self._labels, self._clusters)
        pairs = np.unique(np.stack([self._labels[is_sampled], coarse[is_sampled]], axis=1), axis=0)
        if len(pairs) > len(self._clusters):
            rule = "Each cluster must lie in one coarse cluster of `coarse_labels`"
            split = pairs[1:, 0][np.diff(pairs[:, 0]) == 0]
            raise value_error(rule, f"cluster {split[0]} in several", "Pass coarse clusters of whole clusters")
        n_groups = len(np.unique(pairs[:, 1]))
        if n_groups < clusters_per_batch:
            rule = f"`clusters_per_batch={clusters_per_batch}` must not exceed the number of coarse clusters"
            raise value_error(rule, n_groups, "Lower it, or sample without coarse clusters")
        return pairs[:, 1]

    def _cluster_order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the clusters of consecutive batches, from permutations of all clusters.

        A cluster that does not fit into a batch is deferred to the next one.
        """
        groups: list[int] = self._groups.tolist()
        queue, order = deque[int](), list[int]()
        for index in range(self.n_batches * self.world_size):
            if index % self.world_size == 0:
                sampled = dict[int, int]()  # the cluster of each coarse cluster in the batches of this step
            batch, deferred = dict[int, int](), list[int]()
            while len(batch) < self.clusters_per_batch:
                if not queue:
                    deferred.clear()  # the next permutation contains these clusters, too
                    queue.extend(generator.permutation(len(groups)).tolist())
                cluster = queue.popleft()
                group = groups[cluster]
                if group in batch or sampled.setdefault(group, cluster) != cluster:
                    deferred.append(cluster)
                else:
                    batch[group] = cluster
            queue.extendleft(reversed(deferred))
            order += batch.values()
        return np.array(order)


def check_views(views: int, samples_per_cluster: int) -> None:
    """Raise ValueError unless every image of a batch has a positive: another image or another view."""
    check_integer("views", views, 1)
    check_integer("samples_per_cluster", samples_per_cluster, 2 if views == 1 else 1)


def _times_before(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many times each cluster of a sequence occurs before."""
    sizes = np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    times = np.empty_like(clusters)
    times[np.argsort(clusters, kind="stable")] = np.arange(len(clusters)) - np.repeat(starts, sizes)
    return times


def _check_enough_clusters(
    sizes: NDArray[np.int64], n_clusters: int, clusters_per_batch: int, min_cluster_size: int
) -> None:
    if n_clusters < clusters_per_batch:
        largest = np.sort(sizes)[::-1][:8].tolist()
        kind = "larger" if len(sizes) >= clusters_per_batch else "more"
        is_lowest = clusters_per_batch == 2  # noqa: PLR2004
        raise value_error(
            f"`clusters_per_batch={clusters_per_batch}` needs at least {clusters_per_batch} clusters with "
            f"{min_cluster_size} or more images",
            f"{n_clusters} (the largest sizes are {largest})",
            f"{'Use' if is_lowest else 'Lower it, or use'} a labeler that finds {kind} clusters",
        )
