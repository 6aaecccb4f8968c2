"""The training loop."""

import sys
import time
from contextlib import ExitStack
from functools import cache
from os import PathLike

from jaxtyping import Float
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from udmlss._checks import check_choice, check_integer, check_number
from udmlss._generators import fork_generators
from udmlss._threads import one_training_per_process
from udmlss._torch import device_of, restore_modes
from udmlss.distributed import SynchronizedErrors, broadcast_buffers, is_rank_zero, rank
from udmlss.losses import UDMLSSLoss
from udmlss.models.batch_norm import frozen_batch_norm
from udmlss.models.rotation import RotationPretextHead
from udmlss.results import FitResult, LabelFreeScores, StepReport, StopReason
from udmlss.training.callbacks.dispatch import Callbacks
from udmlss.training.final_embedder import fit_final_embedder
from udmlss.training.identity import check_ranks, describe_rank, identify
from udmlss.training.optim import build_optimizer, check_optimizer
from udmlss.training.rounds import MAX_STEPS, RELABEL_EVERY, ClusterOn, Rounds
from udmlss.training.run import Run
from udmlss.training.step import TrainingStep
from udmlss.training.validation import check_auxiliary, check_images, check_trainable
from udmlss.types import PRECISIONS, Epochs, Images, Precision, PseudoLabels, UsesSeed

_LOADING_TIME = 0.3  # fraction of the time of the first round above which slow loading is reported
_SHORT_WAIT = 5.0  # seconds that are not reported
_BAR_FORMAT = "{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # fits 80 columns with the figures


def fit(
    model: nn.Module,
    images: Images,
    *,
    labeler: object = None,
    criterion: nn.Module | None = None,
    rotation_head: RotationPretextHead | None = None,
    auxiliary: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    trunk_lr: float | None = None,
    lr: float | None = None,
    cluster_images: Images | None = None,
    clusters_per_batch: int | None = None,
    samples_per_cluster: int = 5,
    views: int = 2,
    max_steps: int | Epochs = MAX_STEPS,
    relabel_every: int | Epochs = RELABEL_EVERY,
    cluster_on: ClusterOn | None = None,
    from_scratch: bool = False,
    freeze_batch_norm: bool | None = None,
    average_weights: bool = True,
    refit_embedder: bool = True,
    precision: Precision = "float32",
    chunk_size: int | None = None,
    clip_norm: float | None = None,
    accumulate_grad_batches: int = 1,
    num_workers: int | None = None,
    embeddings_folder: str | PathLike[str] | None = None,
    start_features: Float[Tensor, "n f"] | None = None,
    label_free: bool = False,
    callbacks: object = (),
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Train a model on unlabeled images: embed them, cluster the embeddings, train on the clusters, and repeat.

    `fit` is the loop over `Rounds` with mixed precision, gradient clipping, distribution and callbacks. A round is one
    clustering and the optimizer steps that follow it. All modules are trained in place, on the device of the model's
    parameters, and are left in the modes in which they were. Ctrl-C ends training and returns a result.

    Args:
        model: The model to train, an `EmbeddingModel`, compiled or not.
        images: Training images with their augmentations, square if there is a rotation head: any map-style dataset.
            Labels in its items are ignored.
        labeler: Computes the pseudo-labels; see `Rounds`. None is `ClusterPseudoLabeler()`.
        criterion: The loss: a `UDMLSSLoss`, or a loss of pytorch-metric-learning. None is the multi-similarity loss
            with its miner.
        rotation_head: Predicts rotations from the trunk's features. None trains without the rotation loss.
        auxiliary: A further loss, called as `auxiliary(model, images)` with each batch, such as
            `udmlss.losses.SelfSupervisedRanking`. It returns a scalar, which is added to the loss.
        optimizer: The optimizer. None uses AdamW on `parameter_groups`.
        scheduler: A scheduler of that optimizer, stepped after every optimizer step.
        trunk_lr: Learning rate of the trunk if there is no `optimizer`. None means 3e-5, or 1e-3 from scratch.
        lr: Learning rate of the embedder, the rotation head and the auxiliary loss if there is no `optimizer`. None
            means `trunk_lr`, which suits `EmbeddingModel.from_trunk`. Parts that are initialized at random next to a
            pretrained trunk need a higher one.
        cluster_images: The same images in the same order with test-time transforms, for clustering. None clusters
            `images`.
        clusters_per_batch: Number P of clusters in a batch. None means 8, or all clusters in a round with fewer.
        samples_per_cluster: Number K of images per cluster in a batch.
        views: Number of augmented views of each image in a batch.
        max_steps: Number of optimizer steps, or `Epochs`. The default is eight epochs, but at least 250 steps.
        relabel_every: Number of optimizer steps in a round, or `Epochs`. The default is one epoch, but at least 10
            steps.
        cluster_on: Whether "embeddings" or "features" are clustered; see `Rounds` for None.
        from_scratch: Whether the trunk is not pretrained. Statistics of batch normalization are then trained too, and
            the learning rates default to 1e-3.
        freeze_batch_norm: Whether the statistics of batch normalization are fixed. None fixes them unless the trunk is
            trained from scratch.
        average_weights: Whether the model gets moving averages of its weights, as by `WeightAverage(0.95)`. A
            `WeightAverage` in `callbacks` replaces it.
        refit_embedder: Whether to recompute the embedder when training ends, by a PCA of the features of the trained
            trunk. This applies to embedders of `EmbeddingModel.from_trunk` and takes a further embedding pass, of at
            most 20,000 images, unless label-free scores needed these features already. The embedder is not recomputed
            if the trunk or the embedder is not trained, if the weights are those before training, and after Ctrl-C.
            Clusters and label-free scores are those of the trained embedder.
        precision: "bfloat16" and "float16" run forward passes in mixed precision; "float16", for GPUs without bfloat16,
            scales the loss so that gradients do not vanish. Losses are computed in float32.
        chunk_size: Number of images per forward and backward pass of the embeddings, which bounds the memory of large
            batches. The gradient is that of the whole batch, also if the loss compares all images of the batch, unless
            batch normalization is trained, which then normalizes each chunk by itself. A step needs one more forward
            pass. The rotation head and the auxiliary loss are not computed in chunks. None passes the batch at once.
        clip_norm: Largest norm of the gradient of all parameters together. None does not clip.
        accumulate_grad_batches: Number of batches per optimizer step, whose gradients are averaged. Each batch has its
            own loss, which does not compare images of two batches; `chunk_size` saves memory without this limit.
        num_workers: Number of processes that load images. None chooses by the device; see `embed`.
        embeddings_folder: Folder for embeddings that exceed memory; see `Rounds`.
        start_features: Features (n, f) of `cluster_images` before training, if they are known; see `Rounds`.
        label_free: Whether to compute label-free scores for the history, which takes a further pass over some images
            and a search. Callbacks that need them switch them on.
        callbacks: One or more callbacks: functions that are called with each `RoundReport` and end training by
            returning True, or objects such as `BestWeights`; see `udmlss.training.callbacks`.
        seed: Seed of the batches, the random transforms, dropout, the rotations, and of every part whose own seed is
            None. The global random states are left as they were.
        progress: Whether to show a progress bar.

    Returns:
        The history, the last clusters, and why training ended.

    Raises:
        ValueError: Before training: settings that contradict each other or the images, or settings or images that
            differ between ranks. In a later round: all embeddings are equal, or there are fewer clusters than a batch
            needs. When the embedder is recomputed: the features are all equal or not finite.
        TypeError: An argument or an item of `images` of a wrong type.
        FloatingPointError: The loss or the gradient is not finite. That step is not taken, and the model gets the
            averaged or best weights of the steps before.
        OSError: A checkpoint cannot be written.
        RuntimeError: Another thread of this process is training, or another rank raised an error.

    Example:
        >>> images = torch.rand(40, 3, 8, 8)
        >>> model = EmbeddingModel.from_trunk(nn.Flatten(), images, 16, progress=False)
        >>> result = fit(model, images, max_steps=2, progress=False)
        >>> result.history[-1].step
        2

    References:
        Unsupervised Deep Metric Learning via Auxiliary Rotation Loss. Cao, Chen, Lim. 2019.
        https://arxiv.org/abs/1911.07072. The released code clusters augmented images and rotates images before they
        are augmented. Here `cluster_images` avoids the former, and a rotation after a flip distinguishes 90 from 270
        degrees.
    """
    with ExitStack() as stack:
        with SynchronizedErrors():
            stack.enter_context(one_training_per_process())
            check_auxiliary(auxiliary)
            check_choice("precision", precision, PRECISIONS)
            if clip_norm is not None:
                check_number("clip_norm", clip_norm, above=0)
            if chunk_size is not None:
                check_integer("chunk_size", chunk_size, 1)
            hooks = Callbacks(callbacks, average_weights=average_weights)
            rounds = Rounds(
                model,
                images,
                labeler,
                cluster_images=cluster_images,
                clusters_per_batch=clusters_per_batch,
                samples_per_cluster=samples_per_cluster,
                views=views,
                max_steps=max_steps,
                relabel_every=relabel_every,
                accumulate_grad_batches=accumulate_grad_batches,
                cluster_on=cluster_on,
                label_free=label_free or hooks.need_label_free,
                num_workers=num_workers,
                precision=precision,
                embeddings_folder=embeddings_folder,
                start_features=start_features,
                seed=seed,
            )
            modules = _modules(model, criterion, rotation_head, auxiliary, rounds.seed)
            check_trainable(model)
            freeze_batch_norm = not from_scratch if freeze_batch_norm is None else freeze_batch_norm
            optimizer = build_optimizer(optimizer, modules, trunk_lr=trunk_lr, lr=lr, from_scratch=from_scratch)
            check_optimizer(optimizer, scheduler, modules)
            run = Run(rounds, modules, optimizer, scheduler, hooks.ordered, show_progress=progress and is_rank_zero())
            stack.enter_context(fork_generators(rounds.seed + rank(), device_of(model)))
            if freeze_batch_norm:
                stack.enter_context(frozen_batch_norm(model))
            stack.enter_context(restore_modes(*modules.values()))
            stack.enter_context(rounds.loader.keep_workers())
            check_images(run)
            settings = {"freeze_batch_norm": freeze_batch_norm, "clip_norm": clip_norm}
            run.identity = identify(rounds, modules, optimizer, scheduler, callbacks=hooks.ordered, settings=settings)
            others = {"chunk_size": chunk_size, "refit_embedder": refit_embedder}  # a resumed run may change them
            description = run.identity | describe_rank(run) | others
        check_ranks(description)
        for module in modules.values():
            module.train()
        step = TrainingStep(
            run, freeze_batch_norm=freeze_batch_norm, precision=precision, chunk_size=chunk_size, clip_norm=clip_norm
        )
        try:
            hooks.start(run)
            run.stop_reason = _train(run, step, hooks)
            run.is_complete = True
        except KeyboardInterrupt:
            run.stop_reason, run.is_complete = "interrupt", True
            run.end_round(None)
        except Exception as error:
            error.add_note(f"`fit` had taken {run.step} steps in {len(run.history)} complete rounds.")
            raise
        finally:
            _end(run, hooks)
        broadcast_buffers(model)  # batch norm has other running statistics on each rank
        if refit_embedder:
            fit_final_embedder(run)
    return run.result()


def _train(run: Run, step: TrainingStep, hooks: Callbacks) -> StopReason:
    """Run the loop over rounds and batches; return why it ended."""
    n_steps, hidden = run.rounds.n_steps, not run.show_progress
    with tqdm(total=n_steps, initial=run.step, desc="fit", ncols=80, bar_format=_BAR_FORMAT, disable=hidden) as bar:
        loader, started = run.rounds.loader, time.perf_counter()
        waited = loader.waiting
        for number, current in enumerate(run.rounds):
            run.start_round(current)
            batches = iter(current)
            for _ in range(0, len(current) - current.batches_done, run.rounds.accumulate_grad_batches):
                report = step(batches)
                run.record(report)
                bar.set_postfix_str(_progress_text(report, current.pseudo_labels, run.label_free), refresh=False)
                bar.update()
                hooks.step(report, run)
                if hooks.end_training(run):
                    run.end_round(None)
                    return "callback"
            if run.show_progress and number == 0:
                _check_loading(loader.waiting - waited, time.perf_counter() - started)
            if hooks.end_round(run.end_round(run.rounds.score()), run):
                return "callback"
    return "max_steps"


def _end(run: Run, hooks: Callbacks) -> None:
    try:
        hooks.end(run)
    except KeyboardInterrupt:  # a second Ctrl-C must not leave the folder of a checkpoint locked
        hooks.end(run)
        raise


def _modules(
    model: nn.Module,
    criterion: nn.Module | None,
    rotation_head: nn.Module | None,
    auxiliary: nn.Module | None,
    seed: int,
) -> dict[str, nn.Module]:
    """Return the trained modules by name, on the model's device and with the default seed."""
    if criterion is None:
        criterion = UDMLSSLoss(
            losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5), miner=miners.MultiSimilarityMiner(epsilon=0.1)
        )
    elif not isinstance(criterion, UDMLSSLoss):
        criterion = UDMLSSLoss(criterion)
    modules = {"model": model, "criterion": criterion, "rotation_head": rotation_head, "auxiliary": auxiliary}
    found = {name: module for name, module in modules.items() if module is not None}
    for name in set(found) - {"model"}:
        found[name].to(device_of(model))
        for part in found[name].modules():
            if isinstance(part, UsesSeed):
                part.set_default_seed(seed)
    return found


def _check_loading(waiting: float, seconds: float) -> None:
    if waiting > max(_LOADING_TIME * seconds, _SHORT_WAIT):
        _say_that_loading_is_slow()


@cache  # once per process is enough
def _say_that_loading_is_slow() -> None:
    remedy = "a higher `num_workers` may help, or `min_size` of `ImageFiles` for large photographs"
    problem = f"more than {_LOADING_TIME:.0%} of the time is spent on waiting for images"
    tqdm.write(f"fit: {problem}; {remedy}", file=sys.stderr)


def _progress_text(step: StepReport, pseudo_labels: PseudoLabels, label_free: LabelFreeScores | None) -> str:
    """Return the three figures of the progress bar: loss, clusters, and the label-free score or else the agreement."""
    figures = [f"loss {step.loss:.3f}", f"{pseudo_labels.n_clusters} clusters"]
    if label_free is not None:
        figures.append(f"score {label_free.score:.3f}")
    elif pseudo_labels.agreement is not None:
        figures.append(f"agreement {pseudo_labels.agreement:.2f}")
    return ", ".join(figures)
