"""What a round needs beside its steps: a look at all images, pseudo-labels, and batches drawn by them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from udmlss._checks import check_labels
from udmlss.clustering import cluster_means
from udmlss.embedding import EmbeddingModel, device_of, embed, evaluating
from udmlss.indexing import IndexedImages, SeededBatches
from udmlss.judging import judge_embeddings
from udmlss.parts import Passing
from udmlss.sampling import PseudoLabelSampler
from udmlss.types import Images, Labeler, LabelFreeScores, PseudoLabels, What

_CHUNK = 8192  # features embedded at once
_PROBE = 1000  # images of which a second view is embedded in each round


@dataclass(frozen=True, eq=False)
class Look:
    """All images as the model sees them at one moment; what is clustered may be features of the trunk."""

    clustered: Float[Tensor, "n c"]
    embeddings: Float[Tensor, "n d"]
    label_free: LabelFreeScores


@dataclass(frozen=True)
class Schedule:
    """How many optimiser steps, and how many of them between two clusterings."""

    steps: int
    every: int

    def lengths(self, first: int = 0) -> Iterator[tuple[int, int]]:
        """Yield the number and the steps of each round from the first asked for."""
        for number, begin in enumerate(range(0, self.steps, self.every)):
            if number >= first:
                yield number, min(self.every, self.steps - begin)


@dataclass(frozen=True)
class Rounds:
    """How `fit` relabels and draws."""

    model: EmbeddingModel
    images: Images
    cluster_images: Images
    labeler: Labeler
    passing: Passing
    first_round: What
    later_rounds: What
    clusters_per_batch: int
    samples_per_cluster: int
    views: int
    seed: int

    def look(self, what: What) -> Look:
        """Embed all images, and judge what later rounds cluster. Features get unit length, as embeddings have."""
        found = self._see({what, self.later_rounds})
        return Look(found[what], found["embeddings"], self._judge(found[self.later_rounds]))

    def label(self, look: Look) -> PseudoLabels:
        """Cluster; the centroids are embeddings even where features were clustered."""
        pseudo = self.labeler.label(look.clustered)
        check_labels(pseudo.labels, len(look.embeddings), "labels")
        if look.clustered is look.embeddings:
            return pseudo
        return replace(pseudo, centroids=cluster_means(look.embeddings, pseudo.labels, pseudo.n_clusters))

    def batches(
        self, pseudo: PseudoLabels, number: int, n_batches: int, *, done: int = 0
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a loader of a round's batches but those done already, with the indices of their images."""
        sampler = PseudoLabelSampler(
            pseudo.labels,
            self.clusters_per_batch,
            self.samples_per_cluster,
            views=self.views,
            n_batches=n_batches,
            seed=self.seed,
        )
        sampler.set_epoch(number)
        return DataLoader(
            SeededBatches(self.images, list(sampler), (self.seed, number)),
            batch_size=None,
            sampler=range(done, n_batches),
            num_workers=self.passing.num_workers,
            pin_memory=device_of(self.model).type == "cuda",
            generator=torch.Generator(),  # or the loader would draw from the global one
        )

    def _see(self, kinds: set[What]) -> dict[What, Float[Tensor, "n _"]]:
        if "features" not in kinds:
            return {"embeddings": self._run(self.cluster_images, "embeddings", self.seed)}
        features = self._run(self.cluster_images, "features", self.seed)
        return {"embeddings": self._embed(features), "features": functional.normalize(features)}

    def _judge(self, found: Float[Tensor, "n c"]) -> LabelFreeScores:
        """Score by second views of some images: in every round the same, and drawn apart from what is clustered."""
        probe = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed))[:_PROBE]
        views = self._run(
            Subset(IndexedImages(self.images), probe.tolist()), self.later_rounds, self.seed + 1
        )  # not those clustered
        return judge_embeddings(found, functional.normalize(views), probe)

    def _run(self, images: Images, what: What, seed: int) -> Float[Tensor, "n c"]:
        return embed(
            self.model,
            images,
            what=what,
            num_workers=self.passing.num_workers,
            precision=self.passing.precision,
            channels_last=self.passing.channels_last,
            seed=seed,
        )

    def _embed(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        device = device_of(self.model)
        with evaluating(self.model), torch.no_grad():
            return torch.cat([self.model.embed_features(part.to(device)).cpu() for part in features.split(_CHUNK)])
