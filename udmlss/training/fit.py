"""The loop: embed, cluster, train, again."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from udmlss._checks import check_integer
from udmlss._torch import device_of, fork_torch_rng, restore_modes
from udmlss.dataset import has_other_fields
from udmlss.distributed import SynchronizedErrors, is_rank_zero, rank
from udmlss.distributed.ddp import shared
from udmlss.inference import InferenceOptions
from udmlss.losses import UDMLSSLoss
from udmlss.models.batch_norm import frozen_batch_norm
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.rotation import RotationPretextHead
from udmlss.training.keeper import Keeper
from udmlss.training.loop import Run
from udmlss.training.optim import averaged, parameter_groups
from udmlss.training.progress import Progress
from udmlss.training.rounds import Rounds
from udmlss.training.saver import Saver
from udmlss.training.state import Parts, Schedule
from udmlss.training.state_dict import RunState, identify
from udmlss.training.step import Losses, Step
from udmlss.types import Callback, Epochs, FitResult, Images, Keep, Labeler, LaterRounds, Output, Precision


def fit(
    model: EmbeddingModel,
    images: Images,
    *,
    labeler: Labeler,
    criterion: UDMLSSLoss,
    rotation_head: RotationPretextHead | None = None,
    auxiliary: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    clusters_per_batch: int = 16,
    samples_per_cluster: int = 5,
    views: int = 1,
    rotation_images: int = 16,
    max_steps: int | Epochs = 3600,
    relabel_every: int | Epochs = 30,
    first_round: Output = "features",
    later_rounds: LaterRounds = "embeddings",
    cluster_images: Images | None = None,
    freeze_batch_norm: bool = True,
    precision: Precision = "float32",
    channels_last: bool = False,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    num_workers: int = 0,
    embeddings_folder: str | Path | None = None,
    keep: Keep = "last",
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | Epochs | None = None,
    checkpoints_kept: int = 2,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Train a model on unlabelled images: embed them, cluster, train on the clusters, again.

    A round is one clustering and the optimiser steps after it. In each step P clusters x K images go through the
    metric loss, and some of them, turned four ways, through the rotation loss. Model, head, auxiliary and criterion
    are trained in place where the model's parameters are, and left in the modes they were in.

    Args:
        model: The model to train.
        images: Training images with their augmentations, square if there is a rotation head. Any map-style data
            set; what an item holds beside its image is ignored.
        labeler: Turns embeddings into pseudo-labels, usually a `ClusterPseudoLabeler`.
        criterion: The loss.
        rotation_head: Reads the trunk's features of turned images. None is plain UDML, without rotation.
        auxiliary: A further loss without labels, called as `auxiliary(model, images)` with each batch, such as
            `udmlss.losses.SelfSupervisedRanking`: any module that returns a scalar, which is added as it is.
        optimizer: Holds every parameter that trains, as `parameter_groups` lists them. Default: AdamW on these.
        scheduler: Built on that optimizer, stepped once per optimiser step.
        clusters_per_batch: P. Default as published.
        samples_per_cluster: K. Default as published.
        views: How often each image comes in its batch, augmented anew; a batch has P x K x views images.
        rotation_images: Images of each batch that are turned. Default as in the released code: 16 of 80.
        max_steps: Length of training, in optimiser steps or in `Passes` over the data. Default as published on CUB.
        relabel_every: Length of a round, likewise. Default as in the released code.
        first_round: What the first round clusters: the trunk's features, as a new embedder knows nothing yet, or
            embeddings. Features are clustered at unit length, as embeddings are.
        later_rounds: What later rounds cluster, and what is judged without labels: embeddings, or features if you will
            search with these and need the embedder for training only. "remembered" clusters the embeddings that the
            training steps themselves made of each image when they last had it: no further pass, and no scores.
        cluster_images: The same images in the same order with test-time transforms, for clustering. Default: `images`.
        freeze_batch_norm: Keep the statistics of batch norm as they are. Pass False to train from scratch.
        precision: "bfloat16" runs forward passes in mixed precision; losses stay in float32.
        channels_last: Use channels-last memory format, often faster for convolutions.
        clip_norm: Largest norm of the gradient of all parameters together. None does not clip.
        ema_decay: Cluster the embeddings of an exponential moving average of the weights, which after each step
            keeps this share of itself, and end with that average as the model's weights. None does neither.
        num_workers: Processes that load images.
        embeddings_folder: Folder on a disk for the embeddings of all images, where memory does not hold them. They lie
            there in files without a name, which are gone when `fit` ends, however it ends. None holds them in memory.
        keep: Which weights the model ends with: the "last", or the "best" of all rounds and of the start, by
            `LabelFreeScores.score`; needs `images` with random augmentations and a copy of the weights in memory.
        patience: End training after so many rounds in a row without a better score. None never does.
        checkpoint: Folder for checkpoints, from which an interrupted run goes on as if it had not been. With one,
            SIGTERM saves and ends the process. None writes nothing.
        checkpoint_every: Steps, or `Passes`, between two checkpoints. Default: as `relabel_every`.
        checkpoints_kept: How many of them stay.
        resume: Go on from the newest checkpoint in the folder; from the beginning if there is none. Parts, images and
            settings must be those it was saved with, but for `max_steps`, `patience`, `num_workers` and `progress`.
        callbacks: Called with each round's report; one that returns True ends the training. `reports.append` of a
            list keeps the history even if `fit` raises.
        seed: Seed of batches, turned images, and torch's random numbers in transforms and dropout. torch's global
            random state is left as it was. Labeler, losses and auxiliaries of this library have seeds of their own.
        progress: Whether to show a progress bar.

    Returns:
        The history, the last clusters, why training ended and which weights were kept. Ctrl-C ends it too: what
        was learnt stays.

    Raises:
        ValueError: Settings that do not fit each other or the images, said before training; in a later round,
            embeddings that collapsed or clusters too few for a batch.
        TypeError: A part or an item of the wrong kind.
        FloatingPointError: The loss was not finite; the model is as it was before that step.
        OSError: A checkpoint cannot be written.

    Example:
        >>> from pytorch_metric_learning import losses
        >>> images = torch.rand(40, 3, 8, 8)
        >>> result = fit(
        ...     EmbeddingModel(nn.Flatten(), nn.Linear(192, 16)),
        ...     images,
        ...     labeler=ClusterPseudoLabeler(4),
        ...     criterion=UDMLSSLoss(losses.MultiSimilarityLoss()),
        ...     clusters_per_batch=2,
        ...     max_steps=2,
        ...     progress=False,
        ... )
        >>> result.history[-1].step
        2

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released code clusters augmented images and turns images before
        augmenting them; here `cluster_images` avoids the first, and a turn after a flip keeps 90 and 270 apart.
    """
    preflight.check_settings(model, criterion, labeler, auxiliary)
    preflight.check_choices(first_round, later_rounds, precision)
    preflight.check_keeping(keep, patience, later_rounds)
    preflight.check_ema_decay(ema_decay)
    check_integer("seed", seed, 0)
    preflight.check_sizes(
        labeler,
        len(images),
        clusters_per_batch=clusters_per_batch,
        samples_per_cluster=samples_per_cluster,
        views=views,
        rotation_images=None if rotation_head is None else rotation_images,
    )
    for module in (criterion, rotation_head, auxiliary):
        if module is not None:
            module.to(device_of(model))
    optimizer = optimizer or AdamW(parameter_groups(model, criterion, rotation_head, auxiliary=auxiliary))
    preflight.check_optimizer(
        optimizer, scheduler, model=model, criterion=criterion, rotation_head=rotation_head, auxiliary=auxiliary
    )
    batch_size = clusters_per_batch * samples_per_cluster * views
    schedule = Schedule(
        steps=preflight.in_steps("max_steps", max_steps, len(images), batch_size),
        every=preflight.in_steps("relabel_every", relabel_every, len(images), batch_size),
    )
    save_every = preflight.in_steps(
        "checkpoint_every", relabel_every if checkpoint_every is None else checkpoint_every, len(images), batch_size
    )
    if keep == "best":
        preflight.check_choice_of_rounds(schedule.steps, schedule.every)
    preflight.check_checkpointing(checkpoint, resume=resume, checkpoints_kept=checkpoints_kept)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    losses = shared(
        Losses(
            model,
            criterion,
            rotation_head=rotation_head,
            auxiliary=auxiliary,
            upright_once=freeze_batch_norm,
            precision=precision,
        )
    )
    parts = Parts(model, criterion, rotation_head, auxiliary, optimizer, scheduler, averaged(model, ema_decay))
    passing = InferenceOptions(num_workers, precision, channels_last)
    keeper, so_far = Keeper(parts.kept, keep, patience), Progress()
    modules = parts.modules
    frozen = frozen_batch_norm(model) if freeze_batch_norm else nullcontext()
    show = progress and is_rank_zero()
    with fork_torch_rng(seed + rank(), device_of(model)), frozen, restore_modes(*modules.values()):
        with SynchronizedErrors():
            preflight.check_embeddings_folder(embeddings_folder, later_rounds)  # each machine has its own
            preflight.check_images(
                images,
                cluster_images,
                model=model,
                head=rotation_head,
                auxiliary=auxiliary,
                criterion=criterion,
                labeler=labeler,
            )
            if keep == "best" or patience is not None:
                preflight.check_augmented(images, cluster_images)
        for module in modules.values():
            module.train()
        clustered = images if cluster_images is None else cluster_images
        settings = {
            "clusters_per_batch": clusters_per_batch,
            "samples_per_cluster": samples_per_cluster,
            "views": views,
            "rotation_images": rotation_images,
            "relabel_every": schedule.every,
            "first_round": first_round,
            "later_rounds": later_rounds,
            "freeze_batch_norm": freeze_batch_norm,
            "precision": precision,
            "channels_last": channels_last,
            "clip_norm": clip_norm,
            "ema_decay": ema_decay,
            "keep": keep,
            "seed": seed,
        }
        saver = None
        if checkpoint is not None:
            state = RunState(parts, keeper, so_far, (labeler, *callbacks), identify(parts, clustered, settings))
            saver = _saver(state, Path(checkpoint), n_kept=checkpoints_kept, resume=resume, show=show)
        rounds = Rounds(
            model=parts.judged,
            images=images,
            cluster_images=clustered,
            labeler=labeler,
            passing=passing,
            first_round=first_round,
            later_rounds=later_rounds,
            clusters_per_batch=clusters_per_batch,
            samples_per_cluster=samples_per_cluster,
            views=views,
            seed=seed,
            embeddings_folder=None if embeddings_folder is None else Path(embeddings_folder),
        )
        step = Step(parts, losses, passing, rotation_images=rotation_images, clip_norm=clip_norm)
        run = Run(
            parts=parts,
            rounds=rounds,
            step=step,
            schedule=schedule,
            keeper=keeper,
            progress=so_far,
            callbacks=callbacks,
            saver=saver,
            save_every=save_every,
        )
        with tqdm(total=schedule.steps, initial=so_far.step, desc="fit", unit="step", disable=not show) as bar:
            if show and has_other_fields(images):
                _say_labels_are_ignored()
            try:
                return run(bar)
            finally:
                if parts.average is not None:
                    model.load_state_dict(parts.judged.state_dict())


def _saver(state: RunState, folder: Path, *, n_kept: int, resume: bool, show: bool) -> Saver:
    """Return what saves the run, which has gone back to the newest checkpoint if it is to resume."""
    saver = Saver(state, folder, n_kept=n_kept)
    path = saver.begin(resume=resume)
    if show and path is not None:
        tqdm.write(f"fit: goes on from {path}", file=sys.stderr)
    return saver


@cache  # once in a process is enough
def _say_labels_are_ignored() -> None:
    tqdm.write("fit: what comes with the images, such as labels, is ignored", file=sys.stderr)
