"""Training loops of methods that need no k-means, because they compare two views of each image.

A module of reproduce.py, not a program.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, islice
from math import ceil, log2

import torch
from pooling import compute_maps, pooling_layer
from pytorch_metric_learning.losses import SelfSupervisedLoss
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from udmlss import EmbeddingModel, IndexedImages, embed, frozen_batch_norm, metrics, pair_with_neighbors
from udmlss.losses import CBSwRLoss, ClusteringHead, Decoder, STMLLoss
from udmlss.types import Images

Batches = list[list[int]]
ComputeLoss = Callable[[Tensor, Tensor], Tensor]  # from the images of a batch, first views first, and their indices
BuildOptimizer = Callable[[EmbeddingModel, nn.Module], Optimizer]  # for a model and the other modules of a method


@dataclass(frozen=True)
class TwoViews:
    """The training loop that the methods have in common.

    Args:
        images: Training images with their augmentations.
        plain: The same images with test-time transforms, for the search of neighbors.
        batch: Number of images in a batch, at least 2, each in two views.
        steps: Number of optimizer steps.
        freeze_batch_norm: Whether the statistics of batch normalization are fixed.
        build_optimizer: Function that builds the optimizer.
        schedule: Factor of the learning rates as a function of the fraction of the training that is done.
        workers: Number of processes that load images.
        seed: Seed of the batches.

    Raises:
        ValueError: `batch` is not in 2..n for n images.
    """

    images: Images
    plain: Images
    batch: int
    steps: int
    freeze_batch_norm: bool
    build_optimizer: BuildOptimizer
    schedule: Callable[[float], float] = lambda _: 1
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.batch <= len(self.images):  # noqa: PLR2004 (one image has no negatives)
            message = f"`batch` must lie in 2..{len(self.images)}, the number of images, got {self.batch}. Change it."
            raise ValueError(message)

    def run(
        self,
        model: EmbeddingModel,
        others: nn.Module,
        sample_epoch: Callable[[int], Batches],
        compute_loss: ComputeLoss,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train a model and the other modules of a method in place.

        `sample_epoch` returns the batches of an epoch, each a list of indices.
        """
        device = next(model.parameters()).device
        model.to(memory_format=torch.channels_last).train()
        others.to(device).train()
        optimizer = self.build_optimizer(model, others)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step / self.steps))
        batches = islice((batch for epoch in count() for batch in sample_epoch(epoch)), self.steps)
        loader = DataLoader(IndexedImages(self.images), batch_sampler=batches, num_workers=self.workers)
        with frozen_batch_norm(model) if self.freeze_batch_norm else nullcontext():
            for images, indices in tqdm(loader, total=self.steps, unit="step"):
                loss = compute_loss(images.to(device, memory_format=torch.channels_last), indices)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                after_step()


def train_instances(model: EmbeddingModel, views: TwoViews, loss: nn.Module, *, neighbor_fraction: float = 0) -> None:
    """Train with each image as a class of its own, whose members are its two views (Ye et al. 2019)."""
    criterion = SelfSupervisedLoss(loss)
    pairs = _PairBatches(model, views, neighbor_fraction)
    views.run(model, criterion, pairs, lambda images, _: criterion(*model(images).chunk(2)))


def train_cbswr(
    model: EmbeddingModel,
    views: TwoViews,
    backbone: str,
    *,
    n_clusters: int = 32,
    neighbor_fraction: float = 0.5,
) -> None:
    """Train by CBSwR (Nguyen et al. 2020); `backbone` names the trunk, whose feature maps the method needs."""
    pool = pooling_layer(model.trunk, backbone)
    device = next(model.parameters()).device
    example = IndexedImages(views.plain)[0][0].unsqueeze(0).to(device)
    with torch.no_grad():
        shape = compute_maps(pool, model.eval().trunk, example).shape[1:]
    head = ClusteringHead(model.embedder.out_features, min(n_clusters, views.batch))
    criterion = CBSwRLoss(head, _decoder(shape, example.shape[1:]))

    def compute_loss(images: Tensor, _indices: Tensor) -> Tensor:
        first, second = images.chunk(2)
        with torch.no_grad():
            second_embeddings = model(second)
        maps = compute_maps(pool, model.trunk, first)
        return criterion(maps, second_embeddings, first, lambda maps: model.embed_features(pool(maps).flatten(1)))

    views.run(model, criterion, _PairBatches(model, views, neighbor_fraction), compute_loss)


def train_stml(
    model: EmbeddingModel,
    views: TwoViews,
    *,
    wide_size: int = 1024,
    decay: float = 0.999,
    neighbors: int = 5,
    delta: float = 1,
) -> None:
    """Train by STML (Kim et al. 2022), whose teacher is a moving average of the trunk and a wide embedder."""
    wide = EmbeddingModel(model.trunk, nn.Linear(model.embedder.in_features, wide_size))
    wide.to(next(model.parameters()).device)
    teacher = AveragedModel(wide, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()
    neighbors = min(neighbors, views.batch)
    criterion = STMLLoss(delta=delta, neighbors=2 * neighbors)

    def sample_epoch(epoch: int) -> Batches:
        embeddings = embed(wide, views.plain, num_workers=views.workers)
        _, nearest = metrics.nearest(embeddings, neighbors - 1)
        order = _order(len(nearest), views.seed, epoch)
        queries = order.split(ceil(views.batch / neighbors))[: len(order) // views.batch]
        groups = [torch.cat([indices[:, None], nearest[indices]], dim=1).flatten() for indices in queries]
        return [indices[: views.batch].repeat(2).tolist() for indices in groups]

    def compute_loss(images: Tensor, indices: Tensor) -> Tensor:
        features = model.trunk(images)
        with torch.no_grad():
            targets = teacher(images)
        return criterion(model.embedder(features), wide.embedder(features), targets, indices)

    views.run(model, wide.embedder, sample_epoch, compute_loss, after_step=lambda: teacher.update_parameters(wide))


@dataclass(frozen=True)
class _PairBatches:
    """A sampler of the batches of an epoch: images, and for each the image of its second view."""

    model: EmbeddingModel
    views: TwoViews
    neighbor_fraction: float

    def __call__(self, epoch: int) -> Batches:
        n_images, batch = len(self.views.images), self.views.batch
        partners = torch.arange(n_images)
        if self.neighbor_fraction:
            features = embed(self.model, self.views.plain, output="features", num_workers=self.views.workers)
            seed = self.views.seed + epoch
            partners = pair_with_neighbors(features, fraction=self.neighbor_fraction, seed=seed)
        order = _order(n_images, self.views.seed, epoch)[: n_images - n_images % batch]
        return [torch.cat([indices, partners[indices]]).tolist() for indices in order.split(batch)]


def _order(n_images: int, seed: int, epoch: int) -> Tensor:
    """Return the random order of the images in an epoch."""
    # the generator passes the orders of all earlier epochs, so that the order of any epoch can be computed alone
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n_images, generator=generator) for _ in range(epoch + 1)][-1]


def _decoder(map_shape: torch.Size, image_shape: torch.Size) -> nn.Module:
    """Return a decoder to images of any size: it doubles the side length until it is reached, and then resizes."""
    (_, y, x), (channels, height, width) = map_shape, image_shape
    stages = max(ceil(log2(height / y)), ceil(log2(width / x)))
    decoder = Decoder(map_shape, (channels, y << stages, x << stages))
    if (y << stages, x << stages) == (height, width):
        return decoder
    return nn.Sequential(decoder, nn.Upsample(size=(height, width), mode="bilinear"))
