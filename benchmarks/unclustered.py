"""The methods that learn from two views of each image and no k-means, by the loops of examples/two_views.py.

A step takes half as many images as those of the other methods, twice, and so sees as many views.
"""

import sys

from metric_losses import build_loss
from optimizers import build_optimizer
from pytorch_metric_learning.losses import SelfSupervisedLoss
from settings import Settings
from setups import Data
from torch import nn
from torch.optim import Optimizer
from two_views import TwoViews, train_cbswr, train_instances, train_stml

from udmlss import EmbeddingModel

TEACHER_SPAN = 0.23  # of the training, as published: 1,000 of 4,320 steps


def instance(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> None:
    """Learn without clusters: each image is a class of its own, and two augmented views of it are its members."""
    loss, _ = build_loss(settings.loss, 1, settings.embedding_size)
    if type(loss).__name__ not in SelfSupervisedLoss.supported_losses():
        sys.exit(f"instance must have a loss that SelfSupervisedLoss takes, got {settings.loss}. Name another.")
    train_instances(model, _views(data, settings, seed), loss)


def cbswr(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> None:
    """Learn clusters inside the batch; half of the second views are of the nearest neighbour."""
    train_cbswr(model, _views(data, settings, seed), settings.backbone)


def stml(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> None:
    """Learn from a teacher, the average of the weights so far."""
    decay = max(0.0, 1 - 1 / (TEACHER_SPAN * settings.steps))
    train_stml(model, _views(data, settings, seed), decay=decay)


def _views(data: Data, settings: Settings, seed: int) -> TwoViews:
    def build(model: EmbeddingModel, parts: nn.Module) -> Optimizer:
        return build_optimizer(settings, model, nn.Identity(), auxiliary=parts)

    return TwoViews(
        images=data.train,
        plain=data.plain,
        batch=settings.clusters_per_batch * settings.samples_per_cluster // 2,
        steps=settings.steps,
        freeze_batch_norm=settings.freeze_batch_norm,
        build_optimizer=build,
        workers=settings.workers,
        seed=seed,
    )
