"""Embeddings and features of all images of a dataset."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from udmlss._checks import as_features, check_choice, check_integer, value_error
from udmlss._chunks import CPU
from udmlss._row_store import RowBuffer, RowType, allocate_rows, map_rows, write_rows
from udmlss._torch import autocast, check_weights, device_of, evaluation_mode, to_device, trunk_of
from udmlss.dataset import IndexedImages
from udmlss.distributed import SynchronizedErrors, gather_shards, is_rank_zero, mean_over_ranks, shard, world_size
from udmlss.image_loader import ImageLoader, default_workers
from udmlss.types import PRECISIONS, Images, Output, Precision

_FEATURES_AT_ONCE = 8192


@dataclass(frozen=True)
class InferenceOptions:
    """Options of loading images and of forward passes without gradient; `embed` documents them.

    Raises:
        ValueError: A number is out of range, or the precision is unknown.
    """

    num_workers: int | None = None
    precision: Precision = "float32"
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.num_workers is not None:
            check_integer("num_workers", self.num_workers, 0)
        check_choice("precision", self.precision, PRECISIONS)
        check_integer("batch_size", self.batch_size, 1)


def embed(
    model: nn.Module,
    images: Images,
    *,
    output: Output = "embeddings",
    batch_size: int = 128,
    num_workers: int | None = None,
    precision: Precision = "float32",
    seed: int = 0,
    sharded: bool = False,
    out: str | os.PathLike[str] | None = None,
    dtype: RowType = "float32",
    progress: bool = False,
) -> Float[Tensor, "n d"]:
    """Embed all images in evaluation mode and without gradient.

    The model runs on the device of its parameters, and its training modes are restored afterwards. Images are
    converted to the data type of the parameters and to the memory format of the convolutions: call
    `model.to(memory_format=torch.channels_last)` for channels-last.

    Args:
        model: An `EmbeddingModel`, compiled or not. With `output="embeddings"`, any module from images to embeddings.
        images: Any map-style dataset of images. Labels in its items are ignored.
        output: "embeddings" for the output of the model, or "features" for the output of its trunk.
        batch_size: Number of images per forward pass.
        num_workers: Number of processes that load images. 0 loads them in the main process. None means one for
            each core, at most 8, if the model is on a CUDA GPU, processes are forked by default and the images are not
            a tensor, and otherwise 0. The processes that `torchrun` starts on a machine share its cores. With workers
            the main process loads no item, so that a dataset may open its file in the first call of `__getitem__`.
        precision: "bfloat16" and "float16" run forward passes in mixed precision. The result has the data type
            `dtype` in all cases, also for a model whose parameters have another one.
        seed: Seed of random transforms of the images.
        sharded: Whether to distribute the images over the ranks of `torch.distributed`, each of which must make the
            call.
        out: Path of a .npy file to which rows are written as they are computed, so that memory need not hold them.
            They are written to a temporary file with the suffix ".part", which replaces an existing file after the
            last row. Missing folders are created. None returns the rows in memory.
        dtype: Data type of the file. "float16" halves it and retains three digits, which is enough for clustering.
            The largest absolute number of each row must lie between 6e-5 and 65504, unless all are zero.
        progress: Whether to show a progress bar.

    Returns:
        One row per image on the CPU, in the order of the dataset. If `sharded`, rank 0 gets all rows and the other
        ranks get none. With `out` the rows are read from the file when they are used. Writing to them does not change
        the file.

    Raises:
        ValueError: There are no images, images of a batch differ in shape, the model does not return one row per
            image or has parameters without values, a setting is out of range or unknown, `out` cannot be written or
            exceeds the free disk space, or a row is out of the range of float16.
        TypeError: `images` is not a map-style dataset, an item has no image tensor, the model has no trunk for
            `output="features"`, or the output is not a tensor.
        OSError: Writing the file failed. A previous file is unchanged.
        PermissionError: The previous file cannot be replaced, as on Windows if a tensor is mapped to it. The message
            names the temporary file, which holds all rows.

    Example:
        >>> embed(EmbeddingModel(nn.Flatten(), nn.Identity()), torch.rand(10, 3, 4, 4)).shape
        torch.Size([10, 48])
    """
    options = InferenceOptions(num_workers, precision, batch_size)
    check_choice("output", output, ("embeddings", "features"))
    check_choice("dtype", dtype, ("float32", "float16"))
    check_integer("seed", seed, 0)
    check_weights(model)
    images = IndexedImages(images)
    if out is not None:
        if sharded:
            rule, remedy = "`out` must be written by one process", "Pass `sharded=False`, or gather the rows in memory"
            raise value_error(rule, "`sharded=True`", remedy)
        path = Path(out).expanduser()
        with write_rows(path, len(images), dtype) as append, image_loader([images], model, options) as loader:
            indices = range(len(images))
            _embed_batches(
                append, model, loader, images, options, output=output, indices=indices, seed=seed, progress=progress
            )
        return map_rows(path)
    if dtype != "float32":
        rule, remedy = f'`dtype="{dtype}"` needs a file', 'Pass `out="embeddings.npy"` as well'
        raise value_error(rule, "`out=None`", remedy)
    with image_loader([images], model, options) as loader:
        return embed_all(model, images, options, loader, output=output, seed=seed, sharded=sharded, progress=progress)


def image_loader(datasets: Sequence[Images], model: nn.Module, options: InferenceOptions) -> ImageLoader:
    """Return a loader of datasets for a model."""
    device, num_workers = device_of(model), options.num_workers
    if num_workers is None:
        num_workers = default_workers(datasets, device)
    return ImageLoader(datasets, num_workers, pin_memory=device.type == "cuda")


def embed_all(
    model: nn.Module,
    images: Images,
    options: InferenceOptions,
    loader: ImageLoader,
    *,
    output: Output,
    seed: int,
    indices: Sequence[int] | None = None,
    sharded: bool = True,
    folder: Path | None = None,
    device: torch.device = CPU,
    progress: bool = False,
) -> Float[Tensor, "n d"]:
    """Embed images as `embed` does, into memory, onto a GPU or, with a folder, into unnamed files in it.

    Args:
        model: The model.
        images: The dataset.
        options: Options of the forward passes.
        loader: A loader of the dataset.
        output: "embeddings" or "features".
        seed: Seed of random transforms.
        indices: Indices of the images that are embedded. None embeds all.
        sharded: Whether to distribute the images over ranks.
        folder: Folder of the unnamed files. None uses memory.
        device: Device that stores the rows if they take at most an eighth of its memory.
        progress: Whether to show a progress bar.

    Returns:
        One row per image, on rank 0 if `sharded`.
    """
    indices = range(len(images)) if indices is None else indices
    part = shard(len(indices)) if sharded else range(len(indices))
    own = indices[part.start : part.stop]
    buffer = RowBuffer(len(own), lambda n, d: allocate_rows(n, d, folder, device))
    with SynchronizedErrors() if sharded else nullcontext():
        show = progress and (is_rank_zero() or not sharded)
        _embed_batches(
            buffer.append, model, loader, images, options, output=output, indices=own, seed=seed, progress=show
        )
    if not sharded or world_size() == 1:
        return buffer.rows
    fraction_on_cpu = mean_over_ranks(torch.tensor([float(buffer.rows.device.type == "cpu")]))
    rows = buffer.rows.cpu() if fraction_on_cpu > 0 else buffer.rows  # GPUs may differ in memory
    with SynchronizedErrors():
        gathered = allocate_rows(len(indices), rows.shape[1], folder, device) if is_rank_zero() else None
    return gather_shards(rows, len(indices), only_rank_zero=True, out=gathered)


def embed_features(
    model: nn.Module,
    features: Float[Tensor, "n f"],
    folder: Path | None = None,
    device: torch.device = CPU,
) -> Float[Tensor, "n d"]:
    """Compute embeddings from features of the model's trunk, stored as those of `embed_all` are."""
    buffer = RowBuffer(len(features), lambda n, d: allocate_rows(n, d, folder, device))
    with evaluation_mode(model), torch.no_grad():
        for part in features.split(_FEATURES_AT_ONCE):
            rows = model.embed_features(part.to(device_of(model)))  # type: ignore[operator] # an EmbeddingModel
            buffer.append(rows.float())
    return buffer.rows


def _embed_batches(
    append: Callable[[Tensor], None],
    model: nn.Module,
    loader: ImageLoader,
    images: Images,
    options: InferenceOptions,
    *,
    output: Output,
    indices: Sequence[int],
    seed: int,
    progress: bool,
) -> None:
    """Embed the images of these indices and append the rows of each batch."""
    forward, source = (trunk_of(model), "The trunk") if output == "features" else (model, "The model")
    size = int(options.batch_size)
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    loaded = loader.batches(images, batches, (seed,))
    # No inference mode: a module may cache a tensor of its first forward pass, which training could not use then
    with evaluation_mode(model), torch.no_grad():
        for batch, _ in tqdm(loaded, "embedding", len(batches), unit="batch", leave=False, disable=not progress):
            with autocast(model, options.precision):
                rows = as_features(forward(to_device(batch, model)), source)
            if len(rows) != len(batch):
                found, remedy = f"{len(rows)} for {len(batch)} images", "Pool the outputs of each image"
                raise value_error("The model must return one row per image", found, remedy)
            append(rows.float())
