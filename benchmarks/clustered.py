"""The methods that learn from clusters, all by `fit`: a metric loss on pseudo-labels, and what goes beside it."""

from dataclasses import replace
from typing import Any

from leaving_out import LeavingOut
from metric_losses import build_loss
from optimizers import build_optimizer
from pytorch_metric_learning.losses import MultipleLosses
from settings import Settings
from setups import Data
from true_labels import TrueLabels

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    UDMLSSLoss,
    embed,
    embedder_from_features,
    fit,
)
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.types import FitResult, Labeler

SYNTHESIS_WEIGHT = 0.23  # as released


def udml(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    seed: int,
    *,
    loss: str | None = None,
    rotate: bool = False,
    ranking: bool = False,
    synthesis: bool = False,
    from_features: bool = False,
    average_neighbors: int | None = None,
    true_labels: bool = False,
    **parts: Any,  # noqa: ANN401
) -> FitResult:
    """Learn from clusters.

    Args:
        model: Trained in place.
        data: What to train on.
        settings: What all methods share.
        seed: Seed of the run.
        loss: A metric loss in the place of the settings'.
        rotate: Learn from turned images as well.
        ranking: Keep distorted versions of images in order as well.
        synthesis: Keep synthetic embeddings in order as well.
        from_features: Begin with an embedder that keeps the features' cosines, and train it as slowly as the trunk.
        average_neighbors: Average each embedding with so many others before it is clustered.
        true_labels: Learn from the labels of the training classes in place of clusters.
        parts: Further settings of `fit`.
    """
    settings = replace(settings, loss=loss or settings.loss)
    labeler = TrueLabels(data.labels) if true_labels else _clusters(settings, average_neighbors, seed)
    n_features = model.embedder.in_features
    if from_features:
        found = embed(model, data.plain, output="features", channels_last=True)
        model.embedder.load_state_dict(embedder_from_features(found, settings.embedding_size).state_dict())
        settings = replace(settings, lr=settings.trunk_lr)
    return _fit(
        model,
        data,
        settings,
        seed,
        labeler=labeler,
        criterion=_criterion(settings, labeler.n_clusters, synthesis=synthesis, seed=seed),
        rotation_head=RotationPretextHead(n_features) if rotate and settings.rotation_weight else None,
        auxiliary=SelfSupervisedRanking(n_features, images=settings.rotation_images, seed=seed) if ranking else None,
        **parts,
    )


def _clusters(settings: Settings, average_neighbors: int | None, seed: int) -> ClusterPseudoLabeler | LeavingOut:
    labeler = ClusterPseudoLabeler(
        settings.n_clusters,
        whiten_first=settings.whiten_first or None,
        average_neighbors=average_neighbors,
        seed=seed,
    )
    return LeavingOut(labeler, settings.leave_out) if settings.leave_out else labeler


def _criterion(settings: Settings, n_clusters: int, *, synthesis: bool, seed: int) -> UDMLSSLoss:
    loss, miner = build_loss(settings.loss, n_clusters, settings.embedding_size)
    if synthesis:  # its anchor term would confirm what clusters have wrong
        ranking = SynthesisRankingLoss(settings.embedding_size, anchor_weight=0, seed=seed)
        miners = None if miner is None else [miner, None]
        loss, miner = MultipleLosses([loss, ranking], miners=miners, weights=[1, SYNTHESIS_WEIGHT]), None
    return UDMLSSLoss(loss, miner=miner, rotation_weight=settings.rotation_weight)


def _fit(
    model: EmbeddingModel,
    data: Data,
    settings: Settings,
    seed: int,
    *,
    labeler: Labeler,
    criterion: UDMLSSLoss,
    rotation_head: RotationPretextHead | None = None,
    auxiliary: SelfSupervisedRanking | None = None,
    views: int = 1,
    **parts: Any,  # noqa: ANN401
) -> FitResult:
    result = fit(
        model,
        data.train,
        cluster_images=data.plain,
        labeler=labeler,
        criterion=criterion,
        rotation_head=rotation_head,
        auxiliary=auxiliary,
        optimizer=build_optimizer(settings, model, criterion, rotation_head, auxiliary),
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
    return result
