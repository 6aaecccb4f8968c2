"""What a round needs beside its steps: a look at all images, pseudo-labels, and batches drawn by them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Subset

from udmlss._checks import as_labels
from udmlss._chunks import row_slices
from udmlss._torch import device_of
from udmlss.clustering.kmeans import cluster_means
from udmlss.dataset import IndexedImages, SeededBatches
from udmlss.distributed import SynchronizedErrors, broadcast_buffers, rank, run_on_rank_zero, world_size
from udmlss.inference import InferenceOptions, embed_all, embed_features
from udmlss.model_selection import label_free_scores
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.sampler import PseudoLabelSampler
from udmlss.types import Images, Labeler, LabelFreeScores, LaterRounds, Output, PseudoLabels

_PROBE = 1000  # images of which a second view is embedded in each round


@dataclass(frozen=True, eq=False)
class Look:
    """All images as the model sees them at one moment; what is clustered may be features of the trunk.

    Of several ranks the first alone holds rows.
    """

    clustered: Float[Tensor, "n c"]
    embeddings: Float[Tensor, "n d"]
    label_free: LabelFreeScores | None


@dataclass(frozen=True)
class Rounds:
    """How `fit` relabels and draws."""

    model: EmbeddingModel
    images: Images
    cluster_images: Images
    labeler: Labeler
    passing: InferenceOptions
    first_round: Output
    later_rounds: LaterRounds
    clusters_per_batch: int
    samples_per_cluster: int
    views: int
    seed: int
    embeddings_folder: Path | None

    @property
    def judged(self) -> Output:
        """What is judged: what later rounds cluster, embeddings if these are remembered."""
        return "features" if self.later_rounds == "features" else "embeddings"

    def look(self, output: Output) -> Look:
        """Embed all images, and judge what later rounds cluster. Features get unit length, as embeddings have."""
        broadcast_buffers(self.model)
        found = self._see({output, self.judged})
        return Look(found[output], found["embeddings"], self._judge(found[self.judged]))

    def look_again(self, remembered: Float[Tensor, "n d"] | None) -> Look:
        """Look after a round; where embeddings are remembered, at those and without a score."""
        if self.later_rounds != "remembered" or remembered is None:
            return self.look(self.judged)
        broadcast_buffers(self.model)
        return Look(remembered, remembered, None)

    def label(self, look: Look) -> PseudoLabels:
        """Cluster; the centroids are embeddings even where features were clustered."""
        return run_on_rank_zero(lambda: self._label(look))

    def _label(self, look: Look) -> PseudoLabels:
        pseudo = self.labeler.label(look.clustered)
        as_labels(pseudo.labels, len(look.embeddings), "labels")
        if look.clustered is look.embeddings:
            return pseudo
        return replace(pseudo, centers=cluster_means(look.embeddings, pseudo.labels, pseudo.n_clusters))

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
            rank=rank(),
            world_size=world_size(),
        )
        sampler.set_epoch(number)
        return DataLoader(
            SeededBatches(self.images, list(sampler), (self.seed, number, rank())),
            batch_size=None,
            sampler=range(done, n_batches),
            num_workers=self.passing.num_workers,
            pin_memory=device_of(self.model).type == "cuda",
            generator=torch.Generator(),  # or the loader would draw from the global one
        )

    def _see(self, kinds: set[Output]) -> dict[Output, Float[Tensor, "n _"]]:
        if "features" not in kinds:
            return {"embeddings": self._embed("embeddings")}
        features = self._embed("features")
        with SynchronizedErrors():
            embeddings = embed_features(self.model, features, self.embeddings_folder)
        for rows in row_slices(features):
            features[rows] = normalize(features[rows])
        return {"embeddings": embeddings, "features": features}

    def _embed(self, output: Output) -> Float[Tensor, "n c"]:
        folder = self.embeddings_folder
        return embed_all(self.model, self.cluster_images, self.passing, output=output, seed=self.seed, folder=folder)

    def _judge(self, found: Float[Tensor, "n c"]) -> LabelFreeScores:
        """Score by second views of some images: in every round the same, and drawn apart from what is clustered."""
        n = len(self.images)
        probe = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[:_PROBE]
        probed = Subset(IndexedImages(self.images), probe.tolist())
        views = embed_all(self.model, probed, self.passing, output=self.judged, seed=self.seed + 1)
        return run_on_rank_zero(lambda: label_free_scores(found, normalize(views), probe))
