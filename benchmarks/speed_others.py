"""What the library is held against, from torch, faiss and pytorch-metric-learning alone."""

from dataclasses import dataclass, field

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

PROBE = 1000


def faiss_k_means(
    rows: NDArray[np.float32],
    k: int,
    max_iter: int,
    start: NDArray[np.float32] | None = None,
    *,
    plus_plus: bool = True,
) -> tuple[Tensor, NDArray[np.float32]]:
    """Return the cluster of each row, and the centroids; on every row, with faiss's own choices else."""
    names = {True: faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS, False: faiss.ClusteringInitMethod_RANDOM}
    counts = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
    settings = faiss.Kmeans(rows.shape[1], k, niter=max_iter, init_method=names[plus_plus], **counts)
    settings.train(rows, init_centroids=start)
    return torch.from_numpy(settings.assign(rows)[1]), settings.centers


@dataclass(frozen=True)
class BareLoop:
    """The passes of `fit` and nothing else: no checks, no matching of ids, no judging, measuring or reporting."""

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

    def __call__(self, steps: int, every: int) -> None:
        """Train."""
        parts = [self.trunk, self.embedder, self.head]
        optimizer = torch.optim.AdamW([parameter for part in parts for parameter in part.parameters()], lr=1e-3)
        draws = np.random.default_rng(0)
        found, _ = self._look()
        centroids = None
        for begin in range(0, steps, every):
            rows = found.numpy()
            start = centroids if centroids is not None and centroids.shape[1] == rows.shape[1] else None
            labels, centroids = faiss_k_means(rows, self.n_clusters, 25, start)
            batches = self._batches(labels, min(every, steps - begin), draws)
            for images, clusters in self._load(TensorDataset(self.images, labels), batch_sampler=batches):
                self._step(self._place(images), clusters.to(self._device), optimizer)
            _, found = self._look()

    @property
    def _device(self) -> torch.device:
        return next(self.embedder.parameters()).device

    def _load(self, data: TensorDataset | Subset[tuple[Tensor, ...]], **how: object) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(data, pin_memory=self._device.type == "cuda", **how)

    def _place(self, images: Tensor) -> Tensor:
        form = torch.channels_last if self.channels_last else torch.preserve_format
        return images.to(self._device, non_blocking=True, memory_format=form)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16)

    def _look(self) -> tuple[Tensor, Tensor]:
        data = TensorDataset(self.images)
        self.trunk.eval()
        with torch.inference_mode():
            features = torch.cat([self._features(images) for (images,) in self._load(data, batch_size=128)])
            for (images,) in self._load(Subset(data, range(min(PROBE, len(data)))), batch_size=128):
                self.embedder(self._features(images))
            embeddings = functional.normalize(self.embedder(features))
        self.trunk.train()
        return features.cpu(), embeddings.cpu()

    def _features(self, images: Tensor) -> Tensor:
        with self._autocast():
            features: Tensor = self.trunk(self._place(images))
        return features.float()

    def _batches(self, labels: Tensor, number: int, draws: np.random.Generator) -> list[list[int]]:
        p, k = self.clusters_per_batch, self.samples_per_cluster
        members = [torch.nonzero(labels == cluster).flatten().numpy() for cluster in range(self.n_clusters)]
        full = [cluster for cluster in range(self.n_clusters) if len(members[cluster]) > 1]
        return [
            [int(i) for c in draws.choice(full, p, replace=False) for i in draws.choice(members[c], k)]
            for _ in range(number)
        ]

    def _step(self, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
        chosen = images[torch.randperm(len(images))[: self.rotation_images]]
        turned = self._place(torch.cat([torch.rot90(chosen, turn, (2, 3)) for turn in range(4)]))
        turns = torch.arange(4, device=images.device).repeat_interleave(len(chosen))
        with self._autocast():
            embeddings, logits = self.embedder(self.trunk(images)), self.head(self.trunk(turned))
        embeddings = functional.normalize(embeddings.float())
        metric = self.loss(embeddings, labels, self.miner(embeddings, labels))
        loss = metric + 0.1 * functional.cross_entropy(logits.float(), turns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loop_multi_similarity(
    embeddings: Tensor, labels: Tensor, *, alpha: float = 2, beta: float = 40, base: float = 0.5, epsilon: float = 0.1
) -> Tensor:
    """Return the mined multi-similarity loss by a loop over the rows, as the released UDML-SS step computes it.

    From the definition: an anchor keeps positives less similar than its most similar negative plus epsilon, and
    negatives more similar than its least similar positive less epsilon; the sum is divided by all anchors.
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
