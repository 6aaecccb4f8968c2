"""The loop: embed, cluster, train, again."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from statistics import fmean
from typing import cast

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from udmlss import preflight
from udmlss.batch_norm import frozen_batch_norm
from udmlss.embedding import EmbeddingModel, device_of, modes_kept
from udmlss.indexing import carry_more
from udmlss.keeping import Keeper
from udmlss.losses import UDMLSSLoss
from udmlss.optimizing import parameter_groups
from udmlss.rotation import RotationPretextHead
from udmlss.rounds import Rounds, Schedule
from udmlss.stepping import Measured, Step
from udmlss.types import (
    Callback,
    Ended,
    FitResult,
    Images,
    Keep,
    Labeler,
    LabelFreeScores,
    Passes,
    Precision,
    PseudoLabels,
    RoundReport,
    What,
)


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
    max_steps: int | Passes = 3600,
    relabel_every: int | Passes = 30,
    first_round: What = "features",
    later_rounds: What = "embeddings",
    cluster_images: Images | None = None,
    freeze_batch_norm: bool = True,
    precision: Precision = "float32",
    channels_last: bool = False,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    num_workers: int = 0,
    keep: Keep = "last",
    patience: int | None = None,
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
            search with these and need the embedder for training only.
        cluster_images: The same images in the same order with test-time transforms, for clustering. Default: `images`.
        freeze_batch_norm: Keep the statistics of batch norm as they are. Pass False to train from scratch.
        precision: "bfloat16" runs forward passes in mixed precision; losses stay in float32.
        channels_last: Use channels-last memory format, often faster for convolutions.
        clip_norm: Largest norm of the gradient of all parameters together. None does not clip.
        ema_decay: Cluster the embeddings of an exponential moving average of the weights, which after each step
            keeps this share of itself, and end with that average as the model's weights. None does neither.
        num_workers: Processes that load images.
        keep: Which weights the model ends with: the "last", or the "best" of all rounds and of the start, by
            `LabelFreeScores.score`; needs `images` with random augmentations and a copy of the weights in memory.
        patience: End training after so many rounds in a row without a better score. None never does.
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

    Example:
        >>> from pytorch_metric_learning import losses
        >>> images = torch.rand(40, 3, 8, 8)
        >>> result = fit(
        ...     EmbeddingModel(nn.Flatten(), nn.Linear(192, 16)),
        ...     images,
        ...     labeler=ClusterPseudoLabeler(4),
        ...     criterion=UDMLSSLoss(losses.MultiSimilarityLoss()),
        ...     clusters_per_batch=4,
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
    turned = None if rotation_head is None else rotation_images
    preflight.check_keeping(keep, patience)
    preflight.check_ema_decay(ema_decay)
    preflight.check_sizes(
        labeler,
        len(images),
        clusters_per_batch=clusters_per_batch,
        samples_per_cluster=samples_per_cluster,
        views=views,
        rotation_images=turned,
    )
    parts = [part for part in (model, criterion, rotation_head, auxiliary) if part is not None]
    for part in parts:
        part.to(device_of(model))
    optimizer = optimizer or AdamW(parameter_groups(model, criterion, rotation_head, auxiliary=auxiliary))
    preflight.check_optimizer(
        optimizer, scheduler, model=model, criterion=criterion, rotation_head=rotation_head, auxiliary=auxiliary
    )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    batch_size = clusters_per_batch * samples_per_cluster * views
    schedule = Schedule(
        steps=preflight.in_steps("max_steps", max_steps, len(images), batch_size),
        every=preflight.in_steps("relabel_every", relabel_every, len(images), batch_size),
    )
    if keep == "best":
        preflight.check_choice_of_rounds(schedule.steps, schedule.every)
    draws = torch.Generator().manual_seed(seed)
    average = None if ema_decay is None else _averaged(model, ema_decay)
    judged = model if average is None else cast("EmbeddingModel", average.module)
    rounds = Rounds(
        model=judged,
        images=images,
        cluster_images=images if cluster_images is None else cluster_images,
        labeler=labeler,
        first_round=first_round,
        later_rounds=later_rounds,
        clusters_per_batch=clusters_per_batch,
        samples_per_cluster=samples_per_cluster,
        views=views,
        num_workers=num_workers,
        precision=precision,
        channels_last=channels_last,
        seed=seed,
        draws=draws,
    )
    step = Step(
        model=model,
        criterion=criterion,
        rotation_head=rotation_head,
        auxiliary=auxiliary,
        optimizer=optimizer,
        scheduler=scheduler,
        rotation_images=rotation_images,
        precision=precision,
        channels_last=channels_last,
        clip_norm=clip_norm,
        draws=draws,
        average=average,
    )
    keeper = Keeper([judged, *parts[1:]], keep, patience)
    frozen = frozen_batch_norm(model) if freeze_batch_norm else nullcontext()
    with _seeded(seed, device_of(model)), frozen, modes_kept(*parts):
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
        for part in parts:
            part.train()
        with tqdm(total=schedule.steps, desc="fit", unit="step", disable=not progress) as bar:
            if progress and carry_more(images):
                _say_labels_are_ignored()
            try:
                return _run(rounds, step, schedule, keeper, callbacks=callbacks, bar=bar)
            finally:
                if average is not None:
                    model.load_state_dict(judged.state_dict())


def _run(
    rounds: Rounds,
    step: Step,
    schedule: Schedule,
    keeper: Keeper,
    *,
    callbacks: Sequence[Callback],
    bar: tqdm,
) -> FitResult:
    history: list[RoundReport] = []
    measured: list[Measured] = []
    pseudo: PseudoLabels | None = None
    start: LabelFreeScores | None = None
    ended: Ended = "max_steps"
    started = time.perf_counter()
    try:
        look = rounds.look(rounds.first_round)
        start = look.label_free
        keeper.see(0, start)
        for number, n_steps in enumerate(schedule.rounds()):
            pseudo = rounds.label(look)
            step.criterion.start_round(pseudo)
            for images, index in rounds.batches(pseudo, number, n_steps):
                measured.append(step(images, pseudo.labels[index]))
                bar.set_postfix_str(_summary(measured[-1], pseudo, look.label_free), refresh=False)
                bar.update()
            look = rounds.look(rounds.later_rounds)
            history.append(_report(history, pseudo, measured, look.label_free, started))
            measured, started = [], time.perf_counter()
            keeper.see(history[-1].step, look.label_free)
            if True in [callback(history[-1]) for callback in callbacks]:
                ended = "callback"
                break
            if keeper.out_of_patience:
                ended = "patience"
                break
    except KeyboardInterrupt:
        ended = "interrupt"
        if pseudo is not None and measured:
            history.append(_report(history, pseudo, measured, None, started))
    except Exception as error:
        done = (history[-1].step if history else 0) + len(measured)
        kept = keeper.finish(done)
        error.add_note(f"`fit` had done {done} steps in {len(history)} whole rounds; the model is that of step {kept}.")
        raise
    return FitResult(tuple(history), pseudo, ended, start, keeper.finish(history[-1].step if history else 0))


def _report(
    history: Sequence[RoundReport],
    pseudo: PseudoLabels,
    measured: Sequence[Measured],
    label_free: LabelFreeScores | None,
    started: float,
) -> RoundReport:
    return RoundReport(
        round=len(history),
        step=(history[-1].step if history else 0) + len(measured),
        n_clusters=pseudo.n_clusters,
        n_left_out=pseudo.n_left_out,
        largest_cluster=int(pseudo.sizes.max()) / len(pseudo.labels),
        smallest_cluster=int(pseudo.sizes.min()) / len(pseudo.labels),
        agreement=pseudo.agreement,
        loss=fmean(one.loss for one in measured),
        metric_loss=fmean(one.metric_loss for one in measured),
        rotation_loss=_mean([one.rotation_loss for one in measured]),
        rotation_accuracy=_mean([one.rotation_accuracy for one in measured]),
        auxiliary_loss=_mean([one.auxiliary_loss for one in measured]),
        label_free=label_free,
        seconds=time.perf_counter() - started,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _summary(measured: Measured, pseudo: PseudoLabels, label_free: LabelFreeScores) -> str:
    words = [f"loss {measured.loss:.3f}"]
    if measured.rotation_accuracy is not None:
        words.append(f"turns {measured.rotation_accuracy:.0%} (chance 25%)")
    if measured.auxiliary_loss is not None:
        words.append(f"auxiliary {measured.auxiliary_loss:.3f}")
    words.append(f"{pseudo.n_clusters} clusters")
    if pseudo.n_left_out:
        words.append(f"{pseudo.n_left_out} left out")
    if pseudo.agreement is not None:
        words.append(f"agreement {pseudo.agreement:.2f}")
    words.append(f"self-retrieval {label_free.self_retrieval:.0%}")
    words.append(f"consistency {label_free.consistency:.0%}")
    words.append(f"rank {label_free.effective_rank:.0f}")
    return ", ".join(words)


@cache  # once in a process is enough
def _say_labels_are_ignored() -> None:
    tqdm.write("fit: what comes with the images, such as labels, is ignored", file=sys.stderr)


def _averaged(model: EmbeddingModel, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from the seed for the `with` block, and leave its global state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
