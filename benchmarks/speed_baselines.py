"""Baselines of speed.py, written with torch, faiss and pytorch-metric-learning only."""

from dataclasses import dataclass, field

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

ITERATIONS = 25  # the default of faiss


def faiss_k_means(
    rows: NDArray[np.float32],
    k: int,
    max_iter: int,
    start: NDArray[np.float32] | None = None,
    *,
    plus_plus: bool = True,
) -> Tensor:
    """Return the cluster of each row, by faiss with all rows and otherwise its defaults."""
    names = {True: faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS, False: faiss.ClusteringInitMethod_RANDOM}
    counts = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
    k_means = faiss.Kmeans(rows.shape[1], k, niter=max_iter, init_method=names[plus_plus], **counts)
    k_means.train(rows, init_centroids=start)
    return torch.from_numpy(k_means.assign(rows)[1])


@dataclass(frozen=True)
class BareLoop:
    """A training loop with the forward and backward passes of `fit`, without its checks, reports and matched ids."""

    trunk: nn.Module
    embedder: nn.Module
    head: nn.Module
    images: Tensor
    n_clusters: int
    clusters_per_batch: int
    samples_per_cluster: int
    rotation_images: int
    bfloat16: bool = False
    channels_last: bool = False
    loss: nn.Module = field(default_factory=lambda: losses.MultiSimilarityLoss(2, 40, 0.5))
    miner: nn.Module = field(default_factory=lambda: miners.MultiSimilarityMiner(0.1))

    def __call__(self, steps: int, relabel_every: int) -> None:
        """Train."""
        parts = [self.trunk, self.embedder, self.head]
        optimizer = torch.optim.AdamW([parameter for part in parts for parameter in part.parameters()], lr=1e-3)
        rng = np.random.default_rng(0)
        for begin in range(0, steps, relabel_every):
            features, embeddings = self._embed_all()
            rows = (features if begin == 0 else embeddings).numpy()
            labels = faiss_k_means(rows, self.n_clusters, ITERATIONS)
            batches = self._batches(labels, min(relabel_every, steps - begin), rng)
            for images, clusters in self._load(TensorDataset(self.images, labels), batch_sampler=batches):
                self._step(self._to_device(images), clusters.to(self._device), optimizer)

    @property
    def _device(self) -> torch.device:
        return next(self.embedder.parameters()).device

    def _load(self, data: TensorDataset, **options: object) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(data, pin_memory=self._device.type == "cuda", **options)

    def _to_device(self, images: Tensor) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.preserve_format
        return images.to(self._device, non_blocking=True, memory_format=memory_format)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16)

    def _embed_all(self) -> tuple[Tensor, Tensor]:
        self.trunk.eval()
        with torch.inference_mode():
            batches = self._load(TensorDataset(self.images), batch_size=128)
            features = torch.cat([self._features(images) for (images,) in batches])
            embeddings = functional.normalize(self.embedder(features))
        self.trunk.train()
        return features.cpu(), embeddings.cpu()

    def _features(self, images: Tensor) -> Tensor:
        with self._autocast():
            features: Tensor = self.trunk(self._to_device(images))
        return features.float()

    def _batches(self, labels: Tensor, number: int, rng: np.random.Generator) -> list[list[int]]:
        p, k = self.clusters_per_batch, self.samples_per_cluster
        members = [torch.nonzero(labels == cluster).flatten().numpy() for cluster in range(self.n_clusters)]
        clusters = [cluster for cluster in range(self.n_clusters) if len(members[cluster])]
        return [
            [int(i) for cluster in rng.choice(clusters, p, replace=False) for i in rng.choice(members[cluster], k)]
            for _ in range(number)
        ]

    def _step(self, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
        sampled = images[torch.randperm(len(images))[: self.rotation_images]]
        rotated = self._to_device(torch.cat([torch.rot90(sampled, rotation, (2, 3)) for rotation in range(4)]))
        rotations = torch.arange(4, device=images.device).repeat_interleave(len(sampled))
        with self._autocast():
            embeddings, logits = self.embedder(self.trunk(images)), self.head(self.trunk(rotated))
        embeddings = functional.normalize(embeddings.float())
        metric = self.loss(embeddings, labels, self.miner(embeddings, labels))
        loss = metric + 0.1 * functional.cross_entropy(logits.float(), rotations)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loop_multi_similarity(
    embeddings: Tensor, labels: Tensor, *, alpha: float = 2, beta: float = 40, base: float = 0.5, epsilon: float = 0.1
) -> Tensor:
    """Return the mined multi-similarity loss by a loop over rows, like the released step of UDML-SS.

    An anchor uses the positives that are less similar than its most similar negative plus epsilon, and the negatives
    that are more similar than its least similar positive minus epsilon. The sum is divided by the number of anchors.
    """
    similarity = embeddings @ embeddings.T
    total = embeddings.sum() * 0
    for i in range(len(embeddings)):
        same = labels == labels[i]
        others = torch.arange(len(labels), device=labels.device) != i
        positive, negative = similarity[i][same & others], similarity[i][~same]
        if len(positive) == 0 or len(negative) == 0:
            continue
        hard_positive = positive[positive < negative.max() + epsilon]
        hard_negative = negative[negative > positive.min() - epsilon]
        if len(hard_positive) == 0 or len(hard_negative) == 0:
            continue
        total = total + (1 + (-alpha * (hard_positive - base)).exp().sum()).log() / alpha
        total = total + (1 + (beta * (hard_negative - base)).exp().sum()).log() / beta
    return total / len(embeddings)
