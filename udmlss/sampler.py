"""Pseudo-labels to batches of P clusters with K images each."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler

from udmlss._checks import as_labels, check_integer, value_error


class PseudoLabelSampler(BatchSampler):
    """Batches of P clusters with K images each, as lists of indices for a `DataLoader`'s `batch_sampler`.

    Clusters take turns, each once before any comes again, whatever their size; no batch holds a cluster twice. In
    its turn a cluster gives its next K images, in an order shuffled once per epoch, beginning again at its end: images
    repeat within a batch only where the cluster has fewer than K. A batch lists its images cluster by cluster.

    With several views each image comes as often in a row, to be augmented anew each time: positives that are right
    even where the cluster is not.

    The batches are a pure function of the arguments and the epoch. Over several ranks they are dealt out in turn, so
    that the ranks together see what one would, and each gets as many.

    Args:
        labels: Cluster of each image; a negative one is never drawn.
        clusters_per_batch: P. Default as published: 16.
        samples_per_cluster: K. Default as published: 5. At least 2 if there is one view, so that every image has a
            positive.
        views: How often each drawn image comes in its batch, which has P x K x views images. Default as published.
        n_batches: Length of an epoch on each rank. Default: as many images as can be drawn, whatever the views.
        min_cluster_size: Clusters with fewer images are never drawn.
        seed: Seed of the order.
        rank: Number of this process, from 0.
        world_size: Number of processes.

    Raises:
        ValueError: Fewer clusters of `min_cluster_size` images than `clusters_per_batch`, labels that are not one
            whole number per image, or a number out of its range.

    Example:
        >>> sampler = PseudoLabelSampler(torch.tensor([0, 0, 1, 1, -1]), clusters_per_batch=2, samples_per_cluster=2)
        >>> [sorted(batch) for batch in sampler]
        [[0, 1, 2, 3]]

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released sampler draws clusters and images anew each time; this one
        takes turns, so that coverage is even.
    """

    def __init__(
        self,
        labels: Int[Tensor, " n"],
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
        as_labels(labels, len(labels))
        check_integer("clusters_per_batch", clusters_per_batch, 2)
        check_views(views, samples_per_cluster)
        check_integer("min_cluster_size", min_cluster_size, 1)
        if n_batches is not None:
            check_integer("n_batches", n_batches, 1)
        check_integer("seed", seed, 0)
        if not 0 <= rank < world_size:
            raise value_error(
                "`rank` must lie in 0..world_size-1", f"rank {rank} of {world_size}", "Count ranks from 0"
            )
        found = labels.numpy(force=True).copy()  # so that a change in place changes no batch
        sizes = np.bincount(found[found >= 0])
        self._clusters = np.flatnonzero(sizes >= min_cluster_size)
        _check_enough(sizes, len(self._clusters), clusters_per_batch, min_cluster_size)
        self._sizes = sizes[self._clusters]
        self._labels = found
        self.clusters_per_batch = clusters_per_batch
        self.samples_per_cluster = samples_per_cluster
        self.views = views
        self.batch_size = clusters_per_batch * samples_per_cluster * views
        self.n_batches = n_batches or max(1, int(self._sizes.sum()) // (self.batch_size * world_size))
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which shuffle the next pass over the sampler uses."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        draws = np.random.default_rng((self.seed, self.epoch))
        images = self._grouped_images(draws)
        turns = self._turns(draws)
        cycle = np.arange(len(turns)) // len(self._sizes)
        nth = cycle[:, None] * self.samples_per_cluster + np.arange(self.samples_per_cluster)
        starts = np.cumsum(self._sizes) - self._sizes
        drawn = images[starts[turns, None] + nth % self._sizes[turns, None]]
        batches = drawn.repeat(self.views, axis=1).reshape(-1, self.batch_size)[self.rank :: self.world_size]
        yield from batches.tolist()

    def _grouped_images(self, draws: np.random.Generator) -> NDArray[np.int64]:
        """Return the images that can be drawn, cluster by cluster, shuffled within each."""
        shuffled = draws.permutation(np.flatnonzero(np.isin(self._labels, self._clusters)))
        return shuffled[np.argsort(self._labels[shuffled], kind="stable")]

    def _turns(self, draws: np.random.Generator) -> NDArray[np.int64]:
        """Return the order in which clusters take turns: permutations in a row, no cluster twice in a batch."""
        n_turns = self.n_batches * self.world_size * self.clusters_per_batch
        n_clusters = len(self._sizes)
        cycles: list[NDArray[np.int64]] = []
        started = np.empty(0, dtype=np.int64)  # the clusters of the batch that the last cycle left unfinished
        for begun in range(0, n_turns, n_clusters):
            order = draws.permutation(n_clusters)
            if len(started):
                others = order[~np.isin(order, started)][: self.clusters_per_batch - len(started)]
                order = np.concatenate([others, order[~np.isin(order, others)]])
            cycles.append(order)
            started = order[n_clusters - (begun + n_clusters) % self.clusters_per_batch :]
        return np.concatenate(cycles)[:n_turns]


def check_views(views: int, samples_per_cluster: int) -> None:
    """Refuse batches in which an image has no positive."""
    check_integer("views", views, 1)
    check_integer("samples_per_cluster", samples_per_cluster, 2 if views == 1 else 1)


def _check_enough(sizes: NDArray[np.int64], n_clusters: int, wanted: int, min_cluster_size: int) -> None:
    if n_clusters < wanted:
        largest = np.sort(sizes)[::-1][:8].tolist()
        raise value_error(
            f"`clusters_per_batch={wanted}` needs at least {wanted} clusters with {min_cluster_size} or more images",
            f"{n_clusters} (the largest sizes are {largest})",
            "Lower it, or raise `n_clusters`",
        )
