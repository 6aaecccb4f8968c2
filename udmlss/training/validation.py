"""Checks of the arguments of `fit` and `Rounds`, made before any work starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from udmlss._checks import as_features, as_rows, check_embeddings, check_integer, check_scalar, type_error, value_error
from udmlss._generators import fork_generators
from udmlss._torch import autocast, check_weights, device_of, evaluation_mode, to_device, to_dtype
from udmlss.clustering import ClusterPseudoLabeler, Communities
from udmlss.dataset import IndexedImages
from udmlss.distributed import is_rank_zero
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.losses.proxies import check_n_clusters
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.rotation import RotationPretextHead, check_square
from udmlss.sampler import check_views
from udmlss.types import Epochs, Labeler

if TYPE_CHECKING:
    from udmlss.losses import UDMLSSLoss
    from udmlss.training.rounds import Rounds
    from udmlss.training.run import Run

_Copies = tuple[Any, ...]  # copies of a model and of losses
_COMPARED_VIEWS = 8  # images of which two views are compared


def check_model(model: object) -> None:
    """Raise an error unless `model` is an `EmbeddingModel`, compiled or not, whose parameters have values."""
    if not isinstance(getattr(model, "_orig_mod", model), EmbeddingModel):
        remedy = "Wrap it: EmbeddingModel(trunk, embedder)"
        if isinstance(getattr(model, "module", None), EmbeddingModel):
            remedy = "Pass the EmbeddingModel in it; the library distributes it"
        raise type_error("`model` must be an EmbeddingModel", type(model).__name__, remedy)
    check_weights(model)  # type: ignore[arg-type] # an EmbeddingModel


def check_trainable(model: nn.Module) -> None:
    """Raise ValueError if no parameter of the model is trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        remedy = "Call `model.embedder.requires_grad_(True)`, for example"
        raise value_error("`model` must have parameters that require a gradient", "none", remedy)


def check_auxiliary(auxiliary: object) -> None:
    """Raise TypeError unless `auxiliary` is None or a module that is called with a model and images."""
    if isinstance(auxiliary, SynthesisRankingLoss) or not isinstance(auxiliary, nn.Module | None):
        name = type(auxiliary).__name__
        remedy = "Pass SelfSupervisedRanking(f); a loss of embeddings and labels belongs into UDMLSSLoss"
        raise type_error("`auxiliary` must be a module that is called as auxiliary(model, images)", name, remedy)


def check_sizes(
    labeler: Labeler, n_images: int, clusters_per_batch: int | None, samples_per_cluster: int, views: int
) -> None:
    """Raise an error if the numbers of images, clusters and images per batch contradict each other."""
    if clusters_per_batch is not None:
        check_integer("clusters_per_batch", clusters_per_batch, 2)
    check_views(views, samples_per_cluster)
    n_clusters = fixed_n_clusters(labeler)
    if isinstance(labeler, ClusterPseudoLabeler):
        labeler.check_size(n_images)
    if None not in (n_clusters, clusters_per_batch) and n_clusters < clusters_per_batch:  # type: ignore[operator]
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


def check_same_length(images: IndexedImages, cluster_images: IndexedImages) -> None:
    """Raise ValueError unless both datasets have the same number of images."""
    if len(cluster_images) != len(images):
        found, remedy = f"{len(cluster_images)} and {len(images)} images", "Build both from the same files"
        raise value_error("`cluster_images` must be the same images as `images`", found, remedy)


def check_start_features(features: Float[Tensor, "n f"] | None, n_images: int) -> Float[Tensor, "n f"] | None:
    """Return the features, or raise an error unless they are None or have, on rank 0, a finite row for each image."""
    if features is None:
        return None
    features = as_rows(features, "start_features")
    if not is_rank_zero():
        return features
    check_embeddings(features, "start_features")
    if len(features) != n_images:
        rule, found = "`start_features` must have a row for each image", f"{len(features)} rows for {n_images} images"
        raise value_error(rule, found, 'Pass embed(model, images, output="features")')
    return features


def check_images(run: "Run") -> None:
    """Raise an error if the images and the parts do not fit each other.

    The first image of each dataset and one batch of images go through copies of the parts, so that the parts do not
    change.
    """
    rounds = run.rounds
    first = _first_images(rounds)
    if run.rotation_head is not None:
        check_square(first["images"])
    with _without_effects(rounds):
        copies = _copy_parts(run.model, run.criterion, run.auxiliary)
        features, embeddings = _embed_first(rounds, copies, first)
        _check_start_width(rounds.start_features, features.shape[1])
        _check_in_features("rotation_head", run.rotation_head, features.shape[1])
        _check_in_features("auxiliary", run.auxiliary, features.shape[1])
        run.criterion.check_fits(fixed_n_clusters(rounds.labeler), embeddings.shape[1])
        _check_changing_clusters(run.criterion, rounds.labeler)
        if copies is not None:
            _check_batch(rounds, *copies)
    rounds.are_images_checked = True


def check_model_and_images(rounds: "Rounds") -> None:
    """Raise an error if the model does not accept the first image of each dataset and one batch of images."""
    with _without_effects(rounds):
        copies = _copy_parts(rounds.model)
        features, _ = _embed_first(rounds, copies, _first_images(rounds))
        _check_start_width(rounds.start_features, features.shape[1])
        if copies is not None:
            _check_batch(rounds, *copies)
    rounds.are_images_checked = True


def check_augmented(rounds: "Rounds") -> None:
    """Raise ValueError if `images` have no random augmentations, which label-free scores need."""
    indices = range(min(_COMPARED_VIEWS, len(rounds.images)))
    views = rounds.loader.items(rounds.images, indices, (0, 0))
    others = rounds.loader.items(rounds.cluster_images, indices, (0, 1))
    if all(map(torch.equal, views, others)):
        raise value_error(
            "Label-free scores compare two views of each image, so `images` must be augmented at random",
            f"equal views of the first {len(indices)} images",
            "Give `images` random transforms",
        )


def fixed_n_clusters(labeler: Labeler) -> int | None:
    """Return the number of clusters of the labeler, or None if it is not known before clustering."""
    return labeler.n_clusters if isinstance(labeler, ClusterPseudoLabeler) else None


def _check_changing_clusters(criterion: "UDMLSSLoss", labeler: Labeler) -> None:
    """Raise ValueError if a loss needs a certain number of clusters and the labeler finds another one in each round."""
    if isinstance(labeler, ClusterPseudoLabeler) and isinstance(labeler.clusterer, Communities):
        for module in criterion.modules():
            check_n_clusters(module, f"`{labeler!r}`, whose number of clusters changes")


def _check_in_features(name: str, part: nn.Module | None, f: int) -> None:
    if isinstance(part, RotationPretextHead | SelfSupervisedRanking) and part.in_features != f:
        found, remedy = f"a trunk that returns {f}", f"Build {type(part).__name__}({f})"
        raise value_error(f"`{name}` was built for {part.in_features} features", found, remedy)


def _check_start_width(start_features: Float[Tensor, "n f"] | None, f: int) -> None:
    if start_features is not None and start_features.shape[1] != f:
        found = f"{start_features.shape[1]} columns for a trunk that returns {f} features"
        remedy = 'Pass embed(model, images, output="features")'
        raise value_error("`start_features` must be features of the trunk", found, remedy)


@contextmanager
def _without_effects(rounds: "Rounds") -> Iterator[None]:
    """Run forward passes without gradient, in the precision of the training, and restore the random states."""
    device = device_of(rounds.model)
    with torch.no_grad(), autocast(rounds.model, rounds.options.precision), fork_generators(0, device):
        yield


def _first_images(rounds: "Rounds") -> dict[str, Float[Tensor, "1 c h w"]]:
    """Load the first image of each dataset."""
    datasets = {"cluster_images": rounds.cluster_images, "images": rounds.images}
    if rounds.cluster_images is rounds.images:
        del datasets["cluster_images"]
    return {name: rounds.loader.items(dataset, [0])[0].unsqueeze(0) for name, dataset in datasets.items()}


def _copy_parts(model: nn.Module, *losses: nn.Module | None) -> _Copies | None:
    """Return copies of the model, without compilation, and of losses, or None if these cannot be copied."""
    try:
        copies: _Copies = deepcopy((getattr(model, "_orig_mod", model), *losses))
    except Exception:  # noqa: BLE001 (for example a lock or a tensor with a gradient in an attribute)
        return None
    copies[0].trunk = getattr(copies[0].trunk, "_orig_mod", copies[0].trunk)
    return copies


def _embed_first(
    rounds: "Rounds", copies: _Copies | None, first: dict[str, Tensor]
) -> tuple[Float[Tensor, "1 f"], Float[Tensor, "1 d"]]:
    """Return the features and the embedding of the first training image, after those of the other dataset."""
    model = rounds.model if copies is None else copies[0]
    with evaluation_mode(model):
        return [_embed(model, image, name) for name, image in first.items()][-1]


def _check_batch(
    rounds: "Rounds", model: EmbeddingModel, criterion: "UDMLSSLoss | None" = None, auxiliary: nn.Module | None = None
) -> None:
    """Raise an error if copies of the model and the losses do not accept a batch of images in training mode."""
    n, size = len(rounds.images), rounds.batch_size
    ((batch, _),) = rounds.loader.batches(rounds.images, [[number * n // size for number in range(size)]])
    model.train()
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.eval()  # SyncBatchNorm in training mode would wait for the other ranks
    parts = batch.split(rounds.options.batch_size)  # a batch that is trained in chunks may exceed memory
    embeddings = torch.cat([_embed(model, part, "images")[1] for part in parts])
    if auxiliary is not None:
        _check_result("auxiliary", auxiliary, model, to_device(batch, model))
    if criterion is not None:
        labels = torch.arange(size) % rounds.clusters_per_batch
        with torch.autocast(embeddings.device.type, enabled=False):  # on the CPU, as a wrong class kills a CUDA context
            _check_result("metric_loss", criterion.cpu().metric_loss, embeddings.float().cpu(), labels)


def _embed(
    model: EmbeddingModel, images: Float[Tensor, "b c h w"], name: str
) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b d"]]:
    """Return the features and embeddings of images, or raise an error that names what does not fit."""
    shape = f"images of shape {tuple(images.shape[1:])} in `{name}`"
    with _explain_error("The trunk must accept the images", shape, "Resize or convert them in the transform"):
        output = model.trunk(to_device(images, model))
    features = as_features(output)
    shape, remedy = f"features of shape {tuple(features.shape)}", f"Build it for {features.shape[1]} features"
    with _explain_error("The embedder must accept the features of the trunk", shape, remedy):
        model.embedder(to_dtype(features, model.embedder))
    embeddings = model.embed_features(features)
    if embeddings.ndim != 2 or len(embeddings) != len(images):  # noqa: PLR2004
        rule, found = "The model must return embeddings of shape (b, d)", f"shape {tuple(embeddings.shape)}"
        raise value_error(rule, f"{found} for {len(images)} images", "Pool or flatten its output to one row per image")
    if not embeddings.isfinite().all():
        rule, remedy = "Embeddings must be finite before training", "Check the weights and the values of the images"
        raise value_error(rule, f"NaN or infinity for {len(images)} images in `{name}`", remedy)
    return features, embeddings


@contextmanager
def _explain_error(rule: str, found: str, remedy: str) -> Iterator[None]:
    """Add what was found and a remedy to an error of a module of the user."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0].rstrip(".")
        raise value_error(rule, f"{found} and {reason}", remedy) from error


def _check_result(name: str, loss: Callable[..., object], *arguments: object) -> None:
    """Raise an error if a loss returns something other than a scalar."""
    try:
        result = loss(*arguments)
    except Exception:  # noqa: BLE001 (the loss may not accept made-up labels; the first step raises a true error)
        return
    check_scalar(name, result)
