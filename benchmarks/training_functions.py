"""Functions that train a model in place by one of the compared methods; see methods.py."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from metric_losses import build_loss
from published import LABELERS, build_criterion
from settings import Settings
from setups import Data, backbone_of
from true_labels import TrueLabels
from two_views import TwoViews, train_cbswr, train_instances, train_stml

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    FitResult,
    RotationPretextHead,
    WeightAverage,
    compare_colors,
    embed,
    embedder_from_features,
    fit,
    parameter_groups,
)
from udmlss.backbones import AveragedViews, Backbone, MirrorImage
from udmlss.losses import SelfSupervisedRanking
from udmlss.models import BatchNormNeck
from udmlss.training.rounds import MAX_STEPS
from udmlss.types import Epochs, Labeler

SYNTHESIS_WEIGHT = 0.23  # the released value
TEACHER_SPAN = 0.23  # fraction of the training that STML's teacher averages over; published: 1,000 of 4,320 steps


def frozen(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    _seed: int,
    *,
    embedder: dict[str, Any] | None = None,
    ignore_colors: bool = False,
    ignore_orientation: bool = False,
    flips: bool = False,
) -> None:
    """Do not train.

    With `embedder`, the options of `embedder_from_features`, initialize the embedder. With `flips`, average each image
    and its mirror image.
    """
    model.trunk = _backbone(model, settings, colors=not ignore_colors, orientation=not ignore_orientation).trunk
    if flips:
        average_flips(model)
    if embedder is not None:
        initialize_embedder(model, data, settings, embedder)


def udml(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    seed: int,
    *,
    loss: str | None = None,
    rotation: bool = False,
    ranking: bool = False,
    synthesis: bool = False,
    embedder: dict[str, Any] | None = None,
    clusters_per_class: int | None = None,
    average_neighbors: int | None = None,
    labeler: Labeler | None = None,
    true_labels: bool = False,
    views: int = 1,
    weight_average: float | None = None,
    cluster_on: Literal["embeddings", "features"] | None = None,
    label_free: bool = False,
    callbacks: Sequence[object] = (),
) -> FitResult:
    """Train on clusters by `fit`.

    Args:
        model: The model, which is trained in place.
        data: The images.
        settings: The settings that the methods have in common.
        seed: Seed of the run.
        loss: Metric loss. None uses the loss of the settings.
        rotation: Whether to add the rotation loss.
        ranking: Whether to add `SelfSupervisedRanking`.
        synthesis: Whether to add `SynthesisRankingLoss`.
        embedder: Options of `embedder_from_features`, which initializes the embedder. The embedder is then trained
            with the learning rate of the trunk. None initializes it at random.
        clusters_per_class: Number of clusters as a multiple of the true number of classes. None uses the number of
            the settings.
        average_neighbors: Number of neighbors that each embedding is averaged with before clustering.
        labeler: Computes the clusters. None runs k-means.
        true_labels: Whether to train on the true labels in place of clusters.
        views: Number of augmented views of each image in a batch; the number of images in a batch does not change.
        weight_average: Decay of the average of the weights. None does not average.
        cluster_on: As for `fit`.
        label_free: As for `fit`.
        callbacks: As for `fit`.

    Raises:
        KeyboardInterrupt: The training was interrupted.
    """
    settings = replace(settings, loss=loss or settings.loss)
    n_clusters = settings.n_clusters
    if clusters_per_class is not None:
        n_clusters = clusters_per_class * len(data.labels.unique())
    if labeler is None:
        labeler = ClusterPseudoLabeler(n_clusters, average_neighbors=average_neighbors)
    if true_labels:
        labeler = TrueLabels(data.labels)
        n_clusters = len(data.labels.unique())
    if embedder is not None:
        initialize_embedder(model, data, settings, embedder)
        settings = replace(settings, lr=settings.trunk_lr)
    loss, miner = build_loss(settings.loss, n_clusters, settings.embedding_size)
    criterion = build_criterion(
        loss,
        settings.embedding_size,
        miner=miner,
        rotation_weight=settings.rotation_weight,
        synthesis_weight=SYNTHESIS_WEIGHT if synthesis else 0,
    )
    head = auxiliary = None
    if rotation and settings.rotation_weight:
        head = RotationPretextHead(model.embedder.in_features, max_images=settings.rotation_images)
    if ranking:
        auxiliary = SelfSupervisedRanking(model.embedder.in_features, max_images=settings.rotation_images)
    result = fit(
        model,
        data.train,
        cluster_images=data.plain,
        labeler=labeler,
        criterion=criterion,
        rotation_head=head,
        auxiliary=auxiliary,
        optimizer=build_optimizer(settings, model, criterion, head, auxiliary),
        clusters_per_batch=max(2, settings.clusters_per_batch // views),
        samples_per_cluster=settings.samples_per_cluster,
        views=views,
        max_steps=settings.steps,
        relabel_every=settings.relabel_every,
        cluster_on=cluster_on,
        freeze_batch_norm=settings.freeze_batch_norm,
        average_weights=False,
        num_workers=settings.workers,
        label_free=label_free,
        callbacks=[*callbacks, *([] if weight_average is None else [WeightAverage(weight_average)])],
        seed=seed,
    )
    if result.stop_reason == "interrupt":  # an incomplete training must not be saved as a run
        raise KeyboardInterrupt
    return result


def default(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    seed: int,
    *,
    labeler: dict[str, Any] | None = None,
    true_labels: bool = False,
    ignore_colors: bool | None = None,
    ignore_orientation: bool = False,
    flips: bool = False,
    max_steps: int | Epochs = MAX_STEPS,
    label_free: bool = False,
    callbacks: Sequence[object] = (),
) -> FitResult:
    """Train by `fit(model, images, cluster_images=plain)` after a PCA of the features.

    A `small` network is trained by `from_scratch=True` instead, with an embedder that is initialized at random. The
    embedder is not recomputed when training ends.

    Args:
        model: The model, whose embedder is initialized from the features if the trunk is pretrained.
        data: The images.
        settings: The settings. Of these, the backbone, the embedding size, the learning rate of the trunk and the
            workers are used. The presets have the learning rates of `fit`.
        seed: Seed of the run.
        labeler: Options of `ClusterPseudoLabeler`.
        true_labels: Whether to train on the true labels in place of clusters.
        ignore_colors: Whether to ignore colors. A network that is trained from scratch only trains on changed colors.
            None compares the colors, if the trunk is pretrained.
        ignore_orientation: Whether to ignore the orientation. A network that is trained from scratch only trains on
            rotated images.
        flips: Whether images are clustered and searched by the mean of the features of the image and its mirror image.
        max_steps: As for `fit`.
        label_free: As for `fit`.
        callbacks: As for `fit`.

    Raises:
        KeyboardInterrupt: The training was interrupted.
    """
    from_scratch = settings.backbone == "small"
    if not from_scratch:
        if ignore_colors is None:
            ignore_colors = compare_colors(backbone_of(model, settings), data.plain).ignore_colors
        model.trunk = _backbone(model, settings, colors=not ignore_colors, orientation=not ignore_orientation).trunk
    if flips:
        average_flips(model)
    if not from_scratch:
        model.embedder = embedder_of(model, data, settings, {})
    if true_labels:
        own_labeler: Labeler | None = TrueLabels(data.labels)
    else:
        own_labeler = None if labeler is None else ClusterPseudoLabeler(**labeler)
    result = fit(
        model,
        data.open_train(change_colors=bool(ignore_colors), rotate=ignore_orientation),
        labeler=own_labeler,
        cluster_images=data.plain,
        from_scratch=from_scratch,
        trunk_lr=settings.trunk_lr,
        refit_embedder=False,  # both embedders of one training are scored
        num_workers=settings.workers,
        max_steps=max_steps,
        label_free=label_free,
        callbacks=callbacks,
        seed=seed,
    )
    if result.stop_reason == "interrupt":
        raise KeyboardInterrupt
    return result


def _backbone(model: EmbeddingModel, settings: Settings, *, colors: bool, orientation: bool) -> Backbone:
    """Return the backbone of the model, with or without colors and orientation."""
    backbone = backbone_of(model, settings)
    backbone = backbone if orientation else backbone.without_orientation()
    return backbone if colors else backbone.without_colors()


def average_flips(model: EmbeddingModel) -> None:
    """Let the trunk average the features of each image and of its mirror image, except in training."""
    model.trunk = AveragedViews(model.trunk, [nn.Identity(), MirrorImage()])


def embedder_of(model: EmbeddingModel, data: Data, settings: Settings, options: dict[str, Any]) -> nn.Linear:
    """Return an embedder that is initialized from the features of the trunk."""
    features = embed(model, data.plain, output="features")
    return embedder_from_features(features, settings.embedding_size, **options).to(next(model.parameters()).device)


def initialize_embedder(model: EmbeddingModel, data: Data, settings: Settings, options: dict[str, Any]) -> None:
    """Initialize the embedder of the model by the same PCA. `fit` does not recompute it, as it is no `PCAEmbedder`."""
    model.embedder.load_state_dict(embedder_of(model, data, settings, options).state_dict())


def cluster_contrast(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    seed: int,
    *,
    clusterer: str,
    n_neighbors: int,
    label_free: bool = False,
    callbacks: Sequence[object] = (),
) -> FitResult:
    """Train by Cluster-Contrast or SpCL: clusters of any number, a memory of them, and a batch-norm neck.

    Args:
        model: The model, to which the neck is added.
        data: The images.
        settings: The settings that the methods have in common.
        seed: Seed of the run.
        clusterer: Name of the clusterer.
        n_neighbors: Length of the lists of neighbors, at most a quarter of the images.
        label_free: As for `fit`.
        callbacks: As for `fit`.
    """
    neck = BatchNormNeck(settings.embedding_size).to(next(model.parameters()).device)
    model.embedder = nn.Sequential(model.embedder, neck)
    labeler = LABELERS[clusterer](min(n_neighbors, len(data.plain) // 4))
    return udml(
        model,
        data,
        settings,
        seed,
        loss="cluster-memory",
        labeler=labeler,
        label_free=label_free,
        callbacks=callbacks,
    )


def build_optimizer(
    settings: Settings,
    model: EmbeddingModel,
    criterion: nn.Module,
    rotation_head: RotationPretextHead | None = None,
    auxiliary: nn.Module | None = None,
) -> Optimizer:
    groups = parameter_groups(
        model, criterion, rotation_head, auxiliary=auxiliary, trunk_lr=settings.trunk_lr, lr=settings.lr
    )
    return {"adam": Adam, "adamw": AdamW}[settings.optimizer](groups, weight_decay=settings.weight_decay)


def instance(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> None:
    """Train with each image as a class of its own, whose members are two augmented views, by the published loss."""
    train_instances(model, _two_views(data, settings, seed), NTXentLoss(temperature=0.1))


def cbswr(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> None:
    """Train by CBSwR, where half of the second views are of the nearest neighbor."""
    train_cbswr(model, _two_views(data, settings, seed), settings.backbone)


def stml(model: EmbeddingModel, data: Data, settings: Settings, seed: int) -> None:
    """Train by STML."""
    decay = max(0.0, 1 - 1 / (TEACHER_SPAN * settings.steps))
    train_stml(model, _two_views(data, settings, seed), decay=decay)


def _two_views(data: Data, settings: Settings, seed: int) -> TwoViews:
    """Return the loop of methods that compare two views: half the images per batch, each in two views."""
    return TwoViews(
        images=data.train,
        plain=data.plain,
        batch=settings.clusters_per_batch * settings.samples_per_cluster // 2,
        steps=settings.steps,
        freeze_batch_norm=settings.freeze_batch_norm,
        build_optimizer=lambda model, others: build_optimizer(settings, model, nn.Identity(), auxiliary=others),
        workers=settings.workers,
        seed=seed,
    )
