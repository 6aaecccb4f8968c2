"""Checks of the arguments of `fit` and `Rounds`, made before any work starts."""

import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from udmlss._checks import check_integer, type_error, value_error
from udmlss._torch import device_of, evaluation_mode, seeded_generators
from udmlss.clustering import ClusterPseudoLabeler
from udmlss.clustering.kmeans import check_count
from udmlss.dataset import IndexedImages
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.rotation import RotationPretextHead, check_square
from udmlss.neighbors.search import check_n_neighbors
from udmlss.sampler import check_views
from udmlss.training.optim import left_out_parameters
from udmlss.types import Epochs, Labeler

if TYPE_CHECKING:
    from udmlss.training.run import Run

_COMPARED_VIEWS = 8  # images of which two views are compared


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is an `EmbeddingModel` or one that `torch.compile` returned."""
    if not isinstance(getattr(model, "_orig_mod", model), EmbeddingModel):
        name = type(model).__name__
        raise type_error("`model` must be an EmbeddingModel", name, "Wrap it: EmbeddingModel(trunk, embedder)")


def check_auxiliary(auxiliary: object) -> None:
    """Raise TypeError unless `auxiliary` is None or a module that is called with a model and images."""
    if isinstance(auxiliary, SynthesisRankingLoss) or not isinstance(auxiliary, nn.Module | None):
        name = type(auxiliary).__name__
        remedy = "Pass SelfSupervisedRanking(f); a loss of embeddings and labels belongs into UDMLSSLoss"
        raise type_error("`auxiliary` must be a module that is called as auxiliary(model, images)", name, remedy)


def check_sizes(labeler: Labeler, n_images: int, clusters_per_batch: int, samples_per_cluster: int, views: int) -> None:
    """Raise an error if the numbers of images, clusters and images per batch contradict each other."""
    check_integer("clusters_per_batch", clusters_per_batch, 2)
    check_views(views, samples_per_cluster)
    n_clusters = fixed_n_clusters(labeler)
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


def check_embeddings_folder(folder: str | PathLike[str] | None) -> Path | None:
    """Return the folder as a path, or raise ValueError if it does not exist."""
    if folder is None:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise value_error("`embeddings_folder` must be an existing folder", folder, "Create it on a disk with space")
    return path


def in_steps(name: str, length: int | Epochs, n_images: int, batch_size: int) -> int:
    """Return a length in optimizer steps, or raise an error if it is below 1."""
    steps = length.in_steps(n_images, batch_size) if isinstance(length, Epochs) else length
    check_integer(name, steps, 1)
    return int(steps)


def check_optimizer(optimizer: Optimizer, scheduler: LRScheduler | None, modules: dict[str, nn.Module]) -> None:
    """Raise an error if the scheduler belongs to another optimizer, and warn of parameters without an optimizer."""
    if isinstance(scheduler, ReduceLROnPlateau):
        remedy = "Call its `step` in a callback"
        raise type_error("`scheduler` must not need a score to step", "ReduceLROnPlateau", remedy)
    if scheduler is not None and scheduler.optimizer is not optimizer:
        remedy = "Pass the optimizer that the scheduler was built on"
        raise value_error("`scheduler` must be built on `optimizer`", "one of another optimizer", remedy)
    names = left_out_parameters(optimizer, modules)
    if names:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004
        warnings.warn(
            f"`optimizer` does not hold {listed}, which will not be trained. Build it on `parameter_groups(...)`, or "
            "call `.requires_grad_(False)` on parameters that must not change.",
            stacklevel=3,
        )


def check_same_length(images: IndexedImages, cluster_images: IndexedImages) -> None:
    """Raise ValueError unless both datasets have the same number of images."""
    if len(cluster_images) != len(images):
        raise value_error(
            "`cluster_images` must be the same images as `images`",
            f"{len(cluster_images)} and {len(images)} images",
            "Build both from the same files in the same order",
        )


def check_images(run: "Run") -> None:
    """Raise an error if the parts do not fit each other, by passing the first image of each dataset through them."""
    rounds, model = run.rounds, run.model
    with seeded_generators(0):  # loading an image must not change the random numbers of the training
        image, _ = rounds.images[0]
        if run.rotation_head is not None:
            check_square(image)
        image, _ = rounds.cluster_images[0]
    with evaluation_mode(model), torch.inference_mode():
        features = model.trunk(image.unsqueeze(0).to(device_of(model)))
        embeddings = model.embed_features(features)
    _check_in_features("rotation_head", run.rotation_head, features.shape[1])
    _check_in_features("auxiliary", run.auxiliary, features.shape[1])
    run.criterion.check_fits(fixed_n_clusters(rounds.labeler), embeddings.shape[1])


def check_augmented(images: IndexedImages, cluster_images: IndexedImages) -> None:
    """Raise ValueError if `images` have no random augmentations, which label-free scores need."""
    n_compared = min(_COMPARED_VIEWS, len(images))
    with seeded_generators(0):
        equal = all(torch.equal(images[index][0], cluster_images[index][0]) for index in range(n_compared))
    if equal:
        raise value_error(
            "Label-free scores compare two views of each image, so `images` must be augmented at random",
            f"equal views of the first {n_compared} images",
            "Give `images` random transforms",
        )


def fixed_n_clusters(labeler: Labeler) -> int | None:
    """Return the number of clusters of the labeler, or None if it is not known before clustering."""
    return labeler.n_clusters if isinstance(labeler, ClusterPseudoLabeler) else None


def _check_in_features(name: str, part: nn.Module | None, f: int) -> None:
    if isinstance(part, RotationPretextHead | SelfSupervisedRanking) and part.in_features != f:
        found, remedy = f"a trunk that returns {f}", f"Build {type(part).__name__}({f})"
        raise value_error(f"`{name}` was built for {part.in_features} features", found, remedy)
