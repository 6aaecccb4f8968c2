"""A data set that also tells each item's index."""

from collections.abc import Sequence
from itertools import islice

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from udmlss._checks import refusal, type_refusal
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
            raise refusal("`images` must hold at least one image", "none", "Look at the folder or the split")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        try:
            return _image_of(self.images[index], index), index
        except Exception as error:
            error.add_note(f"while taking item {index} of `images`")
            raise


def carry_more(images: Images) -> bool:
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
        raise type_refusal(
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
    """Stack indexed images into a batch: the `collate_fn` that goes with `IndexedImages`.

    Raises:
        ValueError: The images of the batch differ in shape.
    """
    first, first_index = items[0]
    for image, index in items:
        if image.shape != first.shape:
            raise refusal(
                "Images of a batch must have one shape",
                f"{tuple(first.shape)} in item {first_index} and {tuple(image.shape)} in item {index}",
                "Resize and crop them to one size in the transform",
            )
    return torch.stack([image for image, _ in items]), torch.tensor([index for _, index in items])
