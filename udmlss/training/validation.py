"""What `fit` refuses before any work starts: parts and settings that do not fit each other or the images."""

from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from udmlss._checks import check_choice, check_integer, type_error, value_error
from udmlss._torch import device_of, evaluation_mode
from udmlss.clustering.kmeans import check_count
from udmlss.clustering.labeler import ClusterPseudoLabeler
from udmlss.dataset import IndexedImages
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss, UDMLSSLoss
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.rotation import RotationPretextHead, check_square
from udmlss.neighbors.search import check_n_neighbors
from udmlss.sampler import check_views
from udmlss.training.optim import check_complete
from udmlss.types import Epochs, Images, Keep, Labeler, LaterRounds, Output, Precision

_TRIED = 8  # images of which two views are compared


def check_settings(model: object, criterion: object, labeler: object, auxiliary: object = None) -> None:
    """Refuse parts of the wrong kind."""
    if not isinstance(model, EmbeddingModel):
        name = type(model).__name__
        raise type_error("`model` must be an EmbeddingModel", name, "Wrap it: EmbeddingModel(trunk, embedder)")
    if not isinstance(criterion, UDMLSSLoss):
        name = type(criterion).__name__
        raise type_error("`criterion` must be a UDMLSSLoss", name, f"Wrap it: UDMLSSLoss({name}(...))")
    if not callable(getattr(labeler, "label", None)):
        name = type(labeler).__name__
        remedy = "Pass ClusterPseudoLabeler(100), or ClusterPseudoLabeler(clusterer=...) around it"
        raise type_error("`labeler` must have `label(embeddings)`", name, remedy)
    if isinstance(auxiliary, SynthesisRankingLoss) or not isinstance(auxiliary, nn.Module | None):
        name = type(auxiliary).__name__
        remedy = "Pass SelfSupervisedRanking(f); a loss of embeddings and labels goes into UDMLSSLoss"
        raise type_error("`auxiliary` must be a module called as auxiliary(model, images)", name, remedy)


def check_choices(first_round: Output, later_rounds: LaterRounds, precision: Precision) -> None:
    """Refuse unknown choices."""
    check_choice("first_round", first_round, ("features", "embeddings"))
    check_choice("later_rounds", later_rounds, ("features", "embeddings", "remembered"))
    check_choice("precision", precision, ("float32", "bfloat16"))


def check_sizes(
    labeler: Labeler,
    n_images: int,
    *,
    clusters_per_batch: int,
    samples_per_cluster: int,
    views: int,
    rotation_images: int | None,
) -> None:
    """Refuse numbers of clusters, batches and turned images that contradict each other."""
    check_integer("clusters_per_batch", clusters_per_batch, 2)
    check_views(views, samples_per_cluster)
    n_clusters = _fixed_clusters(labeler)
    if n_clusters is not None:
        check_count(n_clusters, n_images)
    if isinstance(labeler, ClusterPseudoLabeler) and labeler.average_neighbors is not None:
        check_n_neighbors(labeler.average_neighbors, n_images)
    if n_clusters is not None and n_clusters < clusters_per_batch:
        raise value_error(
            f"`clusters_per_batch={clusters_per_batch}` needs at least {clusters_per_batch} clusters",
            f"`n_clusters={n_clusters}`",
            "Lower it, or raise `n_clusters`",
        )
    batch_size = clusters_per_batch * samples_per_cluster * views
    if rotation_images is not None and not 1 <= rotation_images <= batch_size:
        raise value_error(
            f"`rotation_images` must lie between 1 and the batch's {batch_size} images",
            rotation_images,
            "Lower it, or pass `rotation_head=None` for plain UDML",
        )


def check_keeping(keep: Keep, patience: int | None, later_rounds: LaterRounds) -> None:
    """Refuse unknown ways to choose among the rounds' weights, and choosing without scores."""
    check_choice("keep", keep, ("last", "best"))
    if patience is not None:
        check_integer("patience", patience, 1)
    if later_rounds == "remembered" and (keep == "best" or patience is not None):
        found = '`keep="best"`' if keep == "best" else f"`patience={patience}`"
        raise value_error('`later_rounds="remembered"` takes no scores to choose by', found, "Leave one of the two out")


def check_ema_decay(ema_decay: float | None) -> None:
    """Refuse an average that forgets nothing, or everything."""
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise value_error("`ema_decay` must lie between 0 and 1", ema_decay, "Values from 0.9 to 0.999 are usual")


def check_choice_of_rounds(max_steps: int, relabel_every: int) -> None:
    """Refuse to look for the best of one round."""
    if max_steps <= relabel_every:
        found = f"one round of {max_steps} steps"
        raise value_error('`keep="best"` needs 2 or more rounds to choose from', found, "Lower `relabel_every`")


def check_embeddings_folder(folder: str | Path | None, later_rounds: LaterRounds) -> None:
    """Refuse embeddings on a disk where there is no folder, or where training remembers them."""
    if folder is None:
        return
    if not Path(folder).is_dir():
        raise value_error("`embeddings_folder` must be a folder that is there", folder, "Make it, on a disk with room")
    if later_rounds == "remembered":
        found, remedy = '`later_rounds="remembered"`, which are in memory', "Leave one of the two out"
        raise value_error("`embeddings_folder` is for embeddings that each round makes anew", found, remedy)


def check_checkpointing(checkpoint: str | Path | None, *, resume: bool, checkpoints_kept: int) -> None:
    """Refuse to go on from nowhere, and to keep no checkpoint."""
    check_integer("checkpoints_kept", checkpoints_kept, 1)
    if resume and checkpoint is None:
        raise value_error(
            "`resume=True` needs a folder of checkpoints", "`checkpoint=None`", 'Pass `checkpoint="run/"`'
        )


def in_steps(name: str, length: int | Epochs, n_images: int, batch_size: int) -> int:
    """Return a length in optimiser steps, refusing one below 1."""
    steps = length.in_steps(n_images, batch_size) if isinstance(length, Epochs) else length
    check_integer(name, steps, 1)
    return steps


def check_optimizer(optimizer: Optimizer, scheduler: LRScheduler | None, **parts: nn.Module | None) -> None:
    """Refuse an optimiser that leaves out a parameter, and a scheduler that steers another optimiser."""
    check_complete(optimizer, **parts)
    if isinstance(scheduler, ReduceLROnPlateau):
        remedy = "Step that one yourself, in a callback"
        raise type_error("`scheduler` must step without a score", "ReduceLROnPlateau", remedy)
    if scheduler is not None and scheduler.optimizer is not optimizer:
        remedy = "Pass the optimizer that the scheduler was built on"
        raise value_error("`scheduler` must be built on the `optimizer` passed with it", "another one", remedy)


def check_images(
    images: Images,
    cluster_images: Images | None,
    *,
    model: EmbeddingModel,
    head: RotationPretextHead | None,
    auxiliary: nn.Module | None,
    criterion: UDMLSSLoss,
    labeler: Labeler,
) -> None:
    """Refuse what does not go together, by sending the first image of each data set through the parts."""
    image, _ = IndexedImages(images)[0]
    if head is not None:
        check_square(image)
    if cluster_images is not None:
        if len(cluster_images) != len(images):
            raise value_error(
                "`cluster_images` must be the same images as `images`",
                f"{len(cluster_images)} and {len(images)}",
                "Build both from the same files in the same order",
            )
        image, _ = IndexedImages(cluster_images)[0]
    with evaluation_mode(model), torch.inference_mode():
        features = model.trunk(image.unsqueeze(0).to(device_of(model)))
        embeddings = model.embed_features(features)
    _check_features("rotation_head", head, features.shape[1])
    _check_features("auxiliary", auxiliary, features.shape[1])
    criterion.check_fits(_fixed_clusters(labeler), embeddings.shape[1])


def check_augmented(images: Images, cluster_images: Images | None) -> None:
    """Refuse label-free scores where a second view of an image is the image itself."""
    views, plain = IndexedImages(images), IndexedImages(images if cluster_images is None else cluster_images)
    tried = min(_TRIED, len(images))
    with torch.random.fork_rng([]):  # so that training draws what it would without
        same = all(torch.equal(views[index][0], plain[index][0]) for index in range(tried))
    if same:
        raise value_error(
            '`keep="best"` and `patience` compare two views of each image, so `images` must be augmented at random',
            f"equal views of the first {tried} images",
            "Give `images` random transforms",
        )


def _check_features(name: str, part: nn.Module | None, f: int) -> None:
    """Refuse a part that reads features of another dimension than the trunk's."""
    if isinstance(part, RotationPretextHead | SelfSupervisedRanking) and part.in_features != f:
        found, remedy = f"a trunk that gives {f}", f"Build {type(part).__name__}({f})"
        raise value_error(f"`{name}` was built for {part.in_features} features", found, remedy)


def _fixed_clusters(labeler: Labeler) -> int | None:
    """Return how many clusters the labeler makes, where that is known beforehand."""
    return labeler.n_clusters if isinstance(labeler, ClusterPseudoLabeler) else None
