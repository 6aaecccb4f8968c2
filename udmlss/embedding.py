"""A model and images to embeddings."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from udmlss._checks import check_at_least, check_choice, check_features, refusal, type_refusal
from udmlss.distributed import SameFate, gather_shards, is_first, shard, world_size
from udmlss.indexing import SeededBatches
from udmlss.storing import HeldRows, RowType, map_rows, room_for, rows_to_file
from udmlss.types import Images, Precision, What

_CHUNK = 8192  # features embedded at once


class EmbeddingModel(nn.Module):
    """A trunk that turns images into features and an embedder that turns features into unit-length embeddings.

    Args:
        trunk: Images (b c h w) to features (b f): a backbone without its classifier.
        embedder: Features (b f) to embeddings (b d) of any length, often `nn.Linear(f, 512)`.

    Example:
        >>> model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64))
        >>> model(torch.rand(2, 3, 8, 8)).norm(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(self, trunk: nn.Module, embedder: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.embedder = embedder

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return unit-length embeddings.

        Raises:
            ValueError: The trunk's features are no matrix (b f).
            TypeError: They are no tensor.
        """
        return self.embed_features(self.trunk(images))

    def embed_features(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of the trunk's features."""
        check_features(features)
        embeddings = self.embedder(features)
        return functional.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))


@dataclass(frozen=True)
class Passing:
    """How images are loaded and go through a model; the size is that of batches without gradient."""

    num_workers: int
    precision: Precision
    channels_last: bool
    batch_size: int = 128


def embed(
    model: nn.Module,
    images: Images,
    *,
    what: What = "embeddings",
    batch_size: int = 128,
    num_workers: int = 0,
    precision: Precision = "float32",
    channels_last: bool = False,
    seed: int = 0,
    sharded: bool = False,
    out: str | os.PathLike[str] | None = None,
    dtype: RowType = "float32",
    progress: bool = False,
) -> Float[Tensor, "n d"]:
    """Embed all images, in data-set order, in evaluation mode and without gradient.

    Args:
        model: An `EmbeddingModel`, or any module from images to embeddings if `what` is "embeddings". It runs where
            its parameters are, and is left in the modes it was in.
        images: Any map-style data set; what an item holds beside its image is ignored.
        what: "embeddings" for the model's, "features" for those of its trunk.
        batch_size: Images a forward pass.
        num_workers: Processes that load images; 0 loads them here.
        precision: "bfloat16" runs the forward pass in mixed precision; the result is float32 all the same.
        channels_last: Whether batches go in channels-last memory format.
        seed: Seed of what the images' transforms draw, if they do.
        sharded: Share the images among the ranks of `torch.distributed`, each of which must call it.
        out: A .npy file to write the rows to as they come, for more than memory holds; one that is there is replaced
            when the new one is whole. None holds them in memory.
        dtype: Numbers in that file: "float16" takes half the space and keeps three decimals, enough to cluster by.
        progress: Whether to show a progress bar.

    Returns:
        One row per image, on the CPU; of several ranks that share them, the first has all and the others none. With
        `out` they are mapped from the file, which changes if they are changed in place.

    Raises:
        ValueError: No images, images of different shapes in a batch, not a row for each, or an unknown choice; a file
            that cannot be there, or that the disk has no room for.
        TypeError: An item that holds no image tensor; features asked of a model without a trunk, or that are no tensor.
        OSError: Writing failed. No half a file is left.

    Example:
        >>> embed(EmbeddingModel(nn.Flatten(), nn.Identity()), torch.rand(10, 3, 4, 4)).shape
        torch.Size([10, 48])
    """
    check_choice("what", what, ("embeddings", "features"))
    check_choice("precision", precision, ("float32", "bfloat16"))
    check_choice("dtype", dtype, ("float32", "float16"))
    check_at_least("batch_size", batch_size, 1)
    check_at_least("seed", seed, 0)
    if out is None and dtype != "float32":
        raise refusal(f'`dtype="{dtype}"` is for a file', "`out=None`", 'Pass `out="embeddings.npy"` as well')
    if out is not None and sharded:
        raise refusal("`out` is a file of one process", "`sharded=True`", "Leave one of the two out")
    passing = Passing(num_workers, precision, channels_last, batch_size)
    if out is None:
        return embed_all(model, images, passing, what=what, seed=seed, sharded=sharded, progress=progress)
    with rows_to_file(Path(out), len(images), dtype) as append:
        _embed_each(append, model, images, passing, what=what, taken=range(len(images)), seed=seed, progress=progress)
    return map_rows(Path(out))


def embed_all(
    model: nn.Module,
    images: Images,
    passing: Passing,
    *,
    what: What,
    seed: int,
    sharded: bool = True,
    folder: Path | None = None,
    progress: bool = False,
) -> Float[Tensor, "n d"]:
    """Do what `embed` does, of whose arguments these are some; with a folder the rows lie in a file there."""
    taken = shard(len(images)) if sharded else range(len(images))
    held = HeldRows(len(taken), folder)
    with SameFate() if sharded else nullcontext():
        show = progress and (is_first() or not sharded)
        _embed_each(held.append, model, images, passing, what=what, taken=taken, seed=seed, progress=show)
    if not sharded or world_size() == 1:
        return held.rows
    with SameFate():
        whole = room_for(len(images), held.rows.shape[1], folder) if is_first() else None
    return gather_shards(held.rows, len(images), only_first=True, out=whole)


def embed_features(
    model: EmbeddingModel, features: Float[Tensor, "n f"], folder: Path | None = None
) -> Float[Tensor, "n d"]:
    """Return the embeddings of features of the model's trunk, on the CPU, as `embed_all` returns those of images."""
    device, held = device_of(model), HeldRows(len(features), folder)
    with evaluating(model):
        for part in features.split(_CHUNK):
            with torch.inference_mode():
                rows = model.embed_features(part.to(device)).cpu()
            held.append(rows)
    return held.rows


def _embed_each(
    keep: Callable[[Tensor], None],
    model: nn.Module,
    images: Images,
    passing: Passing,
    *,
    what: What,
    taken: range,
    seed: int,
    progress: bool,
) -> None:
    """Hand over the rows of some images, a batch at a time."""
    device = device_of(model)
    forward = _trunk_of(model) if what == "features" else model
    size = passing.batch_size
    batches = DataLoader(
        SeededBatches(images, [taken[at : at + size] for at in range(0, len(taken), size)], (seed,)),
        batch_size=None,
        num_workers=passing.num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    with evaluating(model):
        for batch, _ in tqdm(batches, desc="embedding", unit="batch", leave=False, disable=not progress):
            with autocast(device, passing.precision), torch.inference_mode():
                output = forward(place(batch, device, channels_last=passing.channels_last))
            check_features(output)
            if len(output) != len(batch):
                found, remedy = f"{len(output)} for {len(batch)} images", "Pool what belongs to one image"
                raise refusal("A model must return one row per image", found, remedy)
            keep(output.to("cpu", torch.float32))


def _trunk_of(model: nn.Module) -> nn.Module:
    trunk = dict(model.named_children()).get("trunk")
    if trunk is None:
        name = type(model).__name__
        remedy = 'Wrap it: EmbeddingModel(trunk, embedder), or embed with what="embeddings"'
        raise type_refusal("Features come from a model with a `trunk`", name, remedy)
    return trunk


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are, the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def place(batch: Float[Tensor, "b c h w"], device: torch.device, *, channels_last: bool) -> Float[Tensor, "b c h w"]:
    """Move a batch to the device, in the memory format asked for."""
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    return batch.to(device, non_blocking=True, memory_format=memory_format)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which forward passes run."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Put every part back into the mode, training or evaluation, it was in before the `with` block."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode for the `with` block."""
    with modes_kept(module):
        module.eval()
        yield
