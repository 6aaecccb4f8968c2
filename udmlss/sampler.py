"""Batches of P clusters with K images each."""

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

    The batches are a pure function of the arguments and the epoch. With several ranks the batches are distributed
    round-robin, so that all ranks together see the batches of a single process, and each rank gets the same number.

    Args:
        labels: Cluster of each image. Images with a negative label are never sampled.
        clusters_per_batch: Number of clusters P in a batch. The default is the published one.
        samples_per_cluster: Number of images K of each cluster. The default is the published one. With one view it is
            at least 2, so that every image has a positive.
        views: Number of times that each sampled image occurs in its batch, which has P * K * views images.
        n_batches: Number of batches of an epoch on each rank. None divides the number of images in the sampled
            clusters by the number of images in the batches of all ranks.
        min_cluster_size: Clusters with fewer images are never sampled.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        ValueError: There are fewer than `clusters_per_batch` clusters of `min_cluster_size` images, the labels are not
            one-dimensional, or a number is out of range.
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
        sizes = np.bincount(self._labels[self._labels >= 0])
        self._clusters = np.flatnonzero(sizes >= min_cluster_size)
        _check_enough_clusters(sizes, len(self._clusters), clusters_per_batch, min_cluster_size)
        self._sizes = sizes[self._clusters]
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
        times_sampled = np.arange(len(clusters)) // len(self._sizes)  # before, in this epoch
        positions = times_sampled[:, None] * self.samples_per_cluster + np.arange(self.samples_per_cluster)
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

    def _cluster_order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return concatenated permutations of the clusters in which no batch contains a cluster twice."""
        length = self.n_batches * self.world_size * self.clusters_per_batch
        n_clusters = len(self._sizes)
        permutations: list[NDArray[np.int64]] = []
        incomplete = np.empty(0, dtype=np.int64)  # clusters of the batch at the end of the last permutation
        for start in range(0, length, n_clusters):
            permutation = generator.permutation(n_clusters)
            if len(incomplete):
                is_free = ~np.isin(permutation, incomplete)
                others = permutation[is_free][: self.clusters_per_batch - len(incomplete)]
                permutation = np.concatenate([others, permutation[~np.isin(permutation, others)]])
            permutations.append(permutation)
            incomplete = permutation[n_clusters - (start + n_clusters) % self.clusters_per_batch :]
        return np.concatenate(permutations)[:length]


def check_views(views: int, samples_per_cluster: int) -> None:
    """Raise ValueError unless every image of a batch has a positive: another image or another view."""
    check_integer("views", views, 1)
    check_integer("samples_per_cluster", samples_per_cluster, 2 if views == 1 else 1)


def _check_enough_clusters(
    sizes: NDArray[np.int64], n_clusters: int, clusters_per_batch: int, min_cluster_size: int
) -> None:
    if n_clusters < clusters_per_batch:
        largest = np.sort(sizes)[::-1][:8].tolist()
        too_small = np.count_nonzero(sizes) >= clusters_per_batch
        remedy = "lower `n_clusters`, so that clusters have more images" if too_small else "raise `n_clusters`"
        raise value_error(
            f"`clusters_per_batch={clusters_per_batch}` needs at least {clusters_per_batch} clusters with "
            f"{min_cluster_size} or more images",
            f"{n_clusters} (the largest sizes are {largest})",
            f"Lower it, or {remedy}",
        )
