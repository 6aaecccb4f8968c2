"""A model and images to embeddings."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from udmlss._checks import check_choice, check_features, check_integer, type_error, value_error
from udmlss._row_store import RowBuffer, RowType, allocate_rows, map_rows, write_rows
from udmlss._torch import autocast, device_of, evaluation_mode, to_device
from udmlss.dataset import SeededBatches
from udmlss.distributed import SynchronizedErrors, gather_shards, is_rank_zero, shard, world_size
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.types import Images, Output, Precision

_CHUNK = 8192  # features embedded at once


@dataclass(frozen=True)
class InferenceOptions:
    """How images are loaded and go through a model; the size is that of batches without gradient."""

    num_workers: int
    precision: Precision
    channels_last: bool
    batch_size: int = 128


def embed(
    model: nn.Module,
    images: Images,
    *,
    output: Output = "embeddings",
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
        model: An `EmbeddingModel`, or any module from images to embeddings if `output` is "embeddings". It runs where
            its parameters are, and is left in the modes it was in.
        images: Any map-style data set; what an item holds beside its image is ignored.
        output: "embeddings" for the model's, "features" for those of its trunk.
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
    check_choice("output", output, ("embeddings", "features"))
    check_choice("precision", precision, ("float32", "bfloat16"))
    check_choice("dtype", dtype, ("float32", "float16"))
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    if out is None and dtype != "float32":
        raise value_error(f'`dtype="{dtype}"` is for a file', "`out=None`", 'Pass `out="embeddings.npy"` as well')
    if out is not None and sharded:
        raise value_error("`out` is a file of one process", "`sharded=True`", "Leave one of the two out")
    passing = InferenceOptions(num_workers, precision, channels_last, batch_size)
    if out is None:
        return embed_all(model, images, passing, output=output, seed=seed, sharded=sharded, progress=progress)
    with write_rows(Path(out), len(images), dtype) as append:
        _embed_each(
            append, model, images, passing, output=output, taken=range(len(images)), seed=seed, progress=progress
        )
    return map_rows(Path(out))


def embed_all(
    model: nn.Module,
    images: Images,
    passing: InferenceOptions,
    *,
    output: Output,
    seed: int,
    sharded: bool = True,
    folder: Path | None = None,
    progress: bool = False,
) -> Float[Tensor, "n d"]:
    """Do what `embed` does, of whose arguments these are some; with a folder the rows lie in a file there."""
    taken = shard(len(images)) if sharded else range(len(images))
    held = RowBuffer(len(taken), folder)
    with SynchronizedErrors() if sharded else nullcontext():
        show = progress and (is_rank_zero() or not sharded)
        _embed_each(held.append, model, images, passing, output=output, taken=taken, seed=seed, progress=show)
    if not sharded or world_size() == 1:
        return held.rows
    with SynchronizedErrors():
        whole = allocate_rows(len(images), held.rows.shape[1], folder) if is_rank_zero() else None
    return gather_shards(held.rows, len(images), only_rank_zero=True, out=whole)


def embed_features(
    model: EmbeddingModel, features: Float[Tensor, "n f"], folder: Path | None = None
) -> Float[Tensor, "n d"]:
    """Return the embeddings of features of the model's trunk, on the CPU, as `embed_all` returns those of images."""
    device, held = device_of(model), RowBuffer(len(features), folder)
    with evaluation_mode(model):
        for part in features.split(_CHUNK):
            with torch.inference_mode():
                rows = model.embed_features(part.to(device)).cpu()
            held.append(rows)
    return held.rows


def _embed_each(
    keep: Callable[[Tensor], None],
    model: nn.Module,
    images: Images,
    passing: InferenceOptions,
    *,
    output: Output,
    taken: range,
    seed: int,
    progress: bool,
) -> None:
    """Hand over the rows of some images, a batch at a time."""
    device = device_of(model)
    forward = _trunk_of(model) if output == "features" else model
    size = passing.batch_size
    batches = DataLoader(
        SeededBatches(images, [taken[at : at + size] for at in range(0, len(taken), size)], (seed,)),
        batch_size=None,
        num_workers=passing.num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    with evaluation_mode(model):
        for batch, _ in tqdm(batches, desc="embedding", unit="batch", leave=False, disable=not progress):
            with autocast(device, passing.precision), torch.inference_mode():
                rows = forward(to_device(batch, device, channels_last=passing.channels_last))
            check_features(rows)
            if len(rows) != len(batch):
                found, remedy = f"{len(rows)} for {len(batch)} images", "Pool what belongs to one image"
                raise value_error("A model must return one row per image", found, remedy)
            keep(rows.to("cpu", torch.float32))


def _trunk_of(model: nn.Module) -> nn.Module:
    trunk = dict(model.named_children()).get("trunk")
    if trunk is None:
        name = type(model).__name__
        remedy = 'Wrap it: EmbeddingModel(trunk, embedder), or embed with output="embeddings"'
        raise type_error("Features come from a model with a `trunk`", name, remedy)
    return trunk
