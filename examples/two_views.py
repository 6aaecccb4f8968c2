"""Loops without k-means, for methods that learn from two views of each image: reproduce.py and benchmarks/ run them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, islice
from math import ceil, log2

import torch
from pooling import maps_before, pooling_layer
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
Measure = Callable[[Tensor, Tensor], Tensor]  # a batch and its indices, first all first views, to its loss
BuildOptimizer = Callable[[EmbeddingModel, nn.Module], Optimizer]  # on a model and the new parts of its method


@dataclass(frozen=True)
class TwoViews:
    """What the loops share.

    Args:
        images: Training images with their augmentations.
        plain: The same images with test-time transforms, in which neighbours are looked for.
        batch: Images a step, at least 2; each goes through the model twice.
        steps: Length of the training.
        freeze_batch_norm: Whether to keep the statistics of batch norm.
        build_optimizer: Builds the optimiser.
        schedule: Share of the training that is done to the factor of the learning rates.
        workers: Processes that load images.
        seed: Seed of the batches.
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
        if not 2 <= self.batch <= len(self.images):  # noqa: PLR2004 (a single image has no other)
            message = f"`batch` must lie in 2..{len(self.images)}, the number of images, got {self.batch}. Change it."
            raise ValueError(message)

    def run(
        self,
        model: EmbeddingModel,
        parts: nn.Module,
        draw: Callable[[int], Batches],
        measure: Measure,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Train in place; `draw` gives the batches of each pass over the images, a list of indices each."""
        device = next(model.parameters()).device
        model.to(memory_format=torch.channels_last).train()
        parts.to(device).train()
        optimizer = self.build_optimizer(model, parts)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step / self.steps))
        batches = islice((batch for number in count() for batch in draw(number)), self.steps)
        loader = DataLoader(IndexedImages(self.images), batch_sampler=batches, num_workers=self.workers)
        with frozen_batch_norm(model) if self.freeze_batch_norm else nullcontext():
            for images, index in tqdm(loader, total=self.steps, unit="step"):
                loss = measure(images.to(device, memory_format=torch.channels_last), index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                after()


def train_instances(model: EmbeddingModel, views: TwoViews, loss: nn.Module, *, neighbor_share: float = 0) -> None:
    """Each image is a class of its own (Ye et al. 2019, with NT-Xent): two views draw together, others apart."""
    criterion = SelfSupervisedLoss(loss)
    pairs = _Pairs(model, views, neighbor_share)
    views.run(model, criterion, pairs, lambda images, _: criterion(*model(images).chunk(2)))


def train_cbswr(
    model: EmbeddingModel,
    views: TwoViews,
    backbone: str,
    *,
    n_clusters: int = 32,
    neighbor_share: float = 0.5,
) -> None:
    """CBSwR (Nguyen et al. 2020); the backbone's name tells where its feature maps are."""
    pool = pooling_layer(model.trunk, backbone)
    device = next(model.parameters()).device
    example = IndexedImages(views.plain)[0][0].unsqueeze(0).to(device)
    with torch.no_grad():
        shape = maps_before(pool, model.eval().trunk, example).shape[1:]
    head = ClusteringHead(model.embedder.out_features, min(n_clusters, views.batch))
    criterion = CBSwRLoss(head, _decoder(shape, example.shape[1:]))

    def measure(images: Tensor, _index: Tensor) -> Tensor:
        first, second = images.chunk(2)
        with torch.no_grad():
            second_embeddings = model(second)
        maps = maps_before(pool, model.trunk, first)
        return criterion(maps, second_embeddings, first, lambda found: model.embed_features(pool(found).flatten(1)))

    views.run(model, criterion, _Pairs(model, views, neighbor_share), measure)


def train_stml(
    model: EmbeddingModel,
    views: TwoViews,
    *,
    wide_size: int = 1024,
    decay: float = 0.999,
    neighbors: int = 5,
    delta: float = 1,
) -> None:
    """STML (Kim et al. 2022): the teacher is the moving average of trunk and wide head."""
    wide = EmbeddingModel(model.trunk, nn.Linear(model.embedder.in_features, wide_size))
    wide.to(next(model.parameters()).device)
    teacher = AveragedModel(wide, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()
    neighbors = min(neighbors, views.batch)
    criterion = STMLLoss(delta=delta, neighbors=2 * neighbors)

    def draw(number: int) -> Batches:
        near = metrics.nearest(embed(wide, views.plain, channels_last=True, num_workers=views.workers), neighbors - 1)[
            1
        ]
        order = _order(len(near), views.seed, number)
        queries = order.split(ceil(views.batch / neighbors))[: len(order) // views.batch]
        groups = [torch.cat([rows[:, None], near[rows]], dim=1).flatten() for rows in queries]
        return [rows[: views.batch].repeat(2).tolist() for rows in groups]

    def measure(images: Tensor, index: Tensor) -> Tensor:
        features = model.trunk(images)
        with torch.no_grad():
            taught = teacher(images)
        return criterion(model.embedder(features), wide.embedder(features), taught, index)

    views.run(model, wide.embedder, draw, measure, after=lambda: teacher.update_parameters(wide))


@dataclass(frozen=True)
class _Pairs:
    """Draws the batches of a pass: images, and which images the second views are of."""

    model: EmbeddingModel
    views: TwoViews
    neighbor_share: float

    def __call__(self, number: int) -> Batches:
        n_images, batch = len(self.views.images), self.views.batch
        partners = torch.arange(n_images)
        if self.neighbor_share:
            workers = self.views.workers
            features = embed(self.model, self.views.plain, output="features", channels_last=True, num_workers=workers)
            partners = pair_with_neighbors(features, share=self.neighbor_share, seed=self.views.seed + number)
        order = _order(n_images, self.views.seed, number)[: n_images - n_images % batch]
        return [torch.cat([rows, partners[rows]]).tolist() for rows in order.split(batch)]


def _order(n_images: int, seed: int, number: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randperm(n_images, generator=draws) for _ in range(number + 1)][-1]


def _decoder(map_shape: torch.Size, image_shape: torch.Size) -> nn.Module:
    """Return a decoder that ends in a resizing where doubling alone leads past the image's sides."""
    (_, y, x), (channels, height, width) = map_shape, image_shape
    stages = max(ceil(log2(height / y)), ceil(log2(width / x)))
    decoder = Decoder(map_shape, (channels, y << stages, x << stages))
    if (y << stages, x << stages) == (height, width):
        return decoder
    return nn.Sequential(decoder, nn.Upsample(size=(height, width), mode="bilinear"))
