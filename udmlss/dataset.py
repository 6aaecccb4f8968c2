"""Data sets that also tell each item's index."""

from collections.abc import Sequence
from itertools import islice

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from udmlss._checks import type_error, value_error
from udmlss._torch import seeded_generators
from udmlss.types import Images


class IndexedImages(Dataset[tuple[Tensor, int]]):
    """Images with their indices, without whatever else the items carry.

    Labels are looked up by index where they are used, in the main process: no worker holds a copy that a new
    clustering would make stale.

    Args:
        images: Any map-style data set whose items are image tensors, or tuples or dicts that begin with one.

    Raises:
        ValueError: There are no images.
        TypeError: An item holds no image tensor (c h w), said when that item is taken.

    Example:
        >>> image, index = IndexedImages(torch.zeros(5, 3, 8, 8))[4]
        >>> image.shape, index
        (torch.Size([3, 8, 8]), 4)
    """

    def __init__(self, images: Images) -> None:
        if len(images) == 0:
            raise value_error("`images` must hold at least one image", "none", "Look at the folder or the split")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        try:
            return _image_of(self.images[index], index), index
        except Exception as error:
            error.add_note(f"while taking item {index} of `images`")
            raise


class SeededBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of images with their indices, each drawn from a seed of its own.

    A batch is the same in whatever process it is made and whether or not those before it were: so it does not matter
    how many workers load, nor where a training that was interrupted goes on. For a `DataLoader` with `batch_size=None`.

    Args:
        images: As for `IndexedImages`.
        batches: The indices of each batch.
        key: Numbers from 0 that, with the batch's own, seed what its transforms draw.

    Raises:
        ValueError: There are no images; the images of a batch differ in shape, said when it is taken.
        TypeError: An item holds no image tensor (c h w), said when it is taken.

    Example:
        >>> images, index = SeededBatches(torch.zeros(5, 3, 8, 8), [[0, 1], [4, 2]])[1]
        >>> images.shape, index
        (torch.Size([2, 3, 8, 8]), tensor([4, 2]))
    """

    def __init__(self, images: Images, batches: Sequence[Sequence[int]], key: tuple[int, ...] = (0,)) -> None:
        self.images = IndexedImages(images)
        self.batches = batches
        self.key = key

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        with seeded_generators(*self.key, number):
            return stack_images([self.images[index] for index in self.batches[number]])


def has_other_fields(images: Images) -> bool:
    """Return whether items hold more than an image, such as a label."""
    with torch.random.fork_rng([]):  # so that whoever looks draws what they would without
        first = images[0]
    return isinstance(first, dict | Sequence) and len(first) > 1


def _image_of(item: object, index: int) -> Tensor:
    first = item
    if isinstance(item, dict):
        first = next(iter(item.values()), None)
    elif isinstance(item, Sequence) and not isinstance(item, str):
        first = next(islice(item, 1), None)
    if not isinstance(first, Tensor) or first.ndim != 3 or not first.is_floating_point():  # noqa: PLR2004
        raise type_error(
            "An item of `images` must be, or begin with, a floating-point image tensor (c h w)",
            f"{_describe(first)} in item {index}",
            "Give the data set a transform that ends in a float tensor, such as torchvision's ToTensor",
        )
    return first


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def stack_images(items: Sequence[tuple[Tensor, int]]) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
    """Stack indexed images into a batch.

    Raises:
        ValueError: The images of the batch differ in shape.
    """
    first, first_index = items[0]
    for image, index in items:
        if image.shape != first.shape:
            raise value_error(
                "Images of a batch must have one shape",
                f"{tuple(first.shape)} in item {first_index} and {tuple(image.shape)} in item {index}",
                "Resize and crop them to one size in the transform",
            )
    return torch.stack([image for image, _ in items]), torch.tensor([index for _, index in items])
