"""What a round needs beside its steps: new pseudo-labels, and batches drawn by them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from udmlss._checks import check_labels
from udmlss.clustering import cluster_means
from udmlss.embedding import EmbeddingModel, device_of, embed, evaluating
from udmlss.indexing import IndexedImages, stack_images
from udmlss.sampling import PseudoLabelSampler
from udmlss.types import Images, Labeler, Precision, PseudoLabels, What

_CHUNK = 8192  # features embedded at once


@dataclass(frozen=True)
class Schedule:
    """How many optimiser steps, and how many of them between two clusterings."""

    steps: int
    every: int
    first_round: What

    def rounds(self) -> Iterator[tuple[What, int]]:
        """Yield for each round what to cluster and how many steps to take on it."""
        for begin in range(0, self.steps, self.every):
            yield self.first_round if begin == 0 else "embeddings", min(self.every, self.steps - begin)


@dataclass(frozen=True)
class Rounds:
    """How `fit` relabels and draws."""

    model: EmbeddingModel
    images: Images
    cluster_images: Images
    labeler: Labeler
    clusters_per_batch: int
    samples_per_cluster: int
    num_workers: int
    precision: Precision
    channels_last: bool
    seed: int
    draws: torch.Generator

    def relabel(self, what: What) -> PseudoLabels:
        """Embed all images and cluster them; the centroids are embeddings even where features were clustered."""
        found = embed(
            self.model,
            self.cluster_images,
            what=what,
            num_workers=self.num_workers,
            precision=self.precision,
            channels_last=self.channels_last,
        )
        pseudo = self.labeler.label(found)
        check_labels(pseudo.labels, len(found), "labels")
        if what == "embeddings":
            return pseudo
        return replace(pseudo, centroids=cluster_means(self._embed(found), pseudo.labels, pseudo.n_clusters))

    def batches(self, pseudo: PseudoLabels, number: int, n_batches: int) -> DataLoader[tuple[Tensor, int]]:
        """Return a loader of exactly so many batches, with the indices of their images."""
        sampler = PseudoLabelSampler(
            pseudo.labels,
            self.clusters_per_batch,
            self.samples_per_cluster,
            n_batches=n_batches,
            seed=self.seed,
        )
        sampler.set_epoch(number)
        return DataLoader(
            IndexedImages(self.images),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=stack_images,
            pin_memory=device_of(self.model).type == "cuda",
            generator=self.draws,
        )

    def _embed(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        device = device_of(self.model)
        with evaluating(self.model), torch.no_grad():
            return torch.cat([self.model.embed_features(part.to(device)).cpu() for part in features.split(_CHUNK)])
