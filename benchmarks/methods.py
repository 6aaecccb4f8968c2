"""The methods that are compared: each trains a model in place and returns the reports of its rounds.

Another method is another function in `METHODS`. All take the same steps on as many images, by the same optimiser.
`PARTS` are settings of `fit` that were tried for the recipe, each beside `udml` alone.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from metric_losses import LOSSES, MINERS
from pytorch_metric_learning import losses
from settings import Settings
from setups import Data
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    IndexedImages,
    PseudoLabels,
    RotationPretextHead,
    RoundReport,
    UDMLSSLoss,
    fit,
    frozen_batch_norm,
    parameter_groups,
)

History = tuple[RoundReport, ...]
OPTIMIZERS = {"adam": Adam, "adamw": AdamW}


class TrueLabels:
    """A labeler that knows the answer: the upper bound."""

    def __init__(self, labels: Tensor) -> None:
        self.pseudo = PseudoLabels(labels, None, labels.bincount())
        self.n_clusters = self.pseudo.n_clusters

    def label(self, _embeddings: Tensor) -> PseudoLabels:
        return self.pseudo


def frozen(_model: EmbeddingModel, _data: Data, _settings: Settings, _seed: int) -> History:
    """Leave the model as it is."""
    return ()


def instance(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> History:
    """Learn without clusters: each image is a class of its own, and two augmented views of it are its members.

    A batch holds two views of half as many images, so that a step sees as many views as the other methods' do.
    """
    loss = LOSSES[settings.loss](1, settings.embedding_size)
    if type(loss).__name__ not in losses.SelfSupervisedLoss.supported_losses():
        sys.exit(f"instance must have a loss that SelfSupervisedLoss takes; found {settings.loss}. Name another.")
    criterion = losses.SelfSupervisedLoss(loss)
    optimizer = _optimizer(settings, model, criterion)
    device = next(model.parameters()).device
    batches = _pairs(len(data.labels), settings, seed)
    loader = DataLoader(IndexedImages(data.train), batch_sampler=batches, num_workers=settings.workers)
    model.to(memory_format=torch.channels_last).train()
    with frozen_batch_norm(model) if settings.freeze_batch_norm else nullcontext():
        for images, _ in tqdm(loader, desc="instance", unit="step"):
            one, other = model(images.to(device, memory_format=torch.channels_last)).chunk(2)
            loss = criterion(one, other)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ()


def _pairs(n_images: int, settings: Settings, seed: int) -> list[list[int]]:
    """Return batches of indices, each index twice, half a batch apart."""
    half = settings.clusters_per_batch * settings.samples_per_cluster // 2
    draws = torch.Generator().manual_seed(seed)
    batches: list[list[int]] = []
    while len(batches) < settings.steps:
        whole = torch.randperm(n_images, generator=draws)[: n_images - n_images % half]
        batches += whole.view(-1, half).repeat(1, 2).tolist()
    return batches[: settings.steps]


def udml(model: EmbeddingModel, data: Data, settings: Settings, seed: int, **parts: Any) -> History:  # noqa: ANN401
    """Learn from clusters alone; `parts` are further settings of `fit`."""
    return _fit(model, data, settings, seed, _clusters(settings, seed), **parts)


def udml_ss(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> History:
    """Learn from clusters and turned images."""
    return _fit(model, data, settings, seed, _clusters(settings, seed), rotation_weight=settings.rotation_weight)


def supervised(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> History:
    """Learn from the true labels of the training classes in place of clusters."""
    return _fit(model, data, settings, seed, TrueLabels(data.labels))


PARTS: dict[str, dict[str, Any]] = {
    "two-views": {"views": 2},
    "averaged": {"ema_decay": 0.95},
    "features": {"later_rounds": "features"},
    "remembered": {"later_rounds": "remembered"},
}
METHODS: dict[str, Callable[[EmbeddingModel, Data, Settings, int], History]] = {
    "frozen": frozen,
    "instance": instance,
    "udml": udml,
    "udml-ss": udml_ss,
    **{name: partial(udml, **part) for name, part in PARTS.items()},
    "recipe": partial(udml, **PARTS["two-views"], **PARTS["averaged"]),
    "supervised": supervised,
}
COMPARED = tuple(name for name in METHODS if name not in PARTS)


def _clusters(settings: Settings, seed: int) -> ClusterPseudoLabeler:
    return ClusterPseudoLabeler(settings.n_clusters, whiten_first=settings.whiten_first or None, seed=seed)


def _fit(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    seed: int,
    labeler: ClusterPseudoLabeler | TrueLabels,
    *,
    rotation_weight: float = 0,
    views: int = 1,
    **parts: Any,  # noqa: ANN401
) -> History:
    loss = LOSSES[settings.loss](labeler.n_clusters, settings.embedding_size)
    miner = MINERS[settings.loss]() if settings.loss in MINERS else None
    criterion = UDMLSSLoss(loss, miner=miner, rotation_weight=rotation_weight)
    head = RotationPretextHead(model.embedder.in_features) if rotation_weight else None
    result = fit(
        model,
        data.train,
        cluster_images=data.plain,
        labeler=labeler,
        criterion=criterion,
        rotation_head=head,
        optimizer=_optimizer(settings, model, criterion, head),
        clusters_per_batch=max(2, settings.clusters_per_batch // views),  # as many views a step as without
        samples_per_cluster=settings.samples_per_cluster,
        views=views,
        rotation_images=settings.rotation_images,
        max_steps=settings.steps,
        relabel_every=settings.relabel_every,
        freeze_batch_norm=settings.freeze_batch_norm,
        channels_last=True,
        num_workers=settings.workers,
        seed=seed,
        **parts,
    )
    if result.ended == "interrupt":  # half a training is no result
        raise KeyboardInterrupt
    return result.history


def _optimizer(
    settings: Settings, model: EmbeddingModel, criterion: nn.Module, head: nn.Module | None = None
) -> Optimizer:
    groups = parameter_groups(model, criterion, head, trunk_lr=settings.trunk_lr, lr=settings.lr)
    return OPTIMIZERS[settings.optimizer](groups, weight_decay=settings.weight_decay)
