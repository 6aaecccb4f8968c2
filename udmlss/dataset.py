"""Images with their indices, and the image in an item of a dataset."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import index as as_index
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from udmlss._checks import type_error, value_error
from udmlss.types import Images

_IMAGE_KEYS = ("image", "pixel_values")
_FIELDS_NAMED = 8  # in an error message


class IndexedImages(Dataset[tuple[Tensor, int]]):
    """Images with their indices, without the other fields of the items.

    Pseudo-labels are looked up by index in the main process, so that workers never use those of a previous clustering.

    Args:
        images: Any map-style dataset, such as a `torch.utils.data.Dataset`, a Hugging Face `datasets.Dataset` or a
            tensor. An item is an image tensor (c, h, w), a sequence whose first element is one, or a dictionary that
            holds one. Another `IndexedImages` is not wrapped twice.
        image_key: Key of the image if items are dictionaries. None means "image" or "pixel_values", or the first
            value if neither key exists.

    Raises:
        ValueError: There are no images.
        TypeError: `images` is not a map-style dataset, or is a `Subset` by a mask instead of indices. An item does not
            hold an image tensor, which is found when the item is loaded.

    Example:
        >>> image, index = IndexedImages(torch.zeros(5, 3, 8, 8))[4]
        >>> image.shape, index
        (torch.Size([3, 8, 8]), 4)
        >>> IndexedImages([{"label": 7, "photo": torch.zeros(3, 8, 8)}], image_key="photo")[0][0].shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, images: Images, image_key: str | None = None) -> None:
        _check_map_style(images)
        _check_indices(images)
        if len(images) == 0:
            raise value_error("`images` must hold at least one image", "none", "Check the folder or the split")
        self.images: Images = images
        self.image_key: str | None = image_key
        if type(images) is IndexedImages:
            self.images = images.images
            self.image_key = images.image_key if image_key is None else image_key

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> tuple[Float[Tensor, "c h w"], int]:
        index = as_index(index)  # Some datasets accept no integers but those of Python
        try:
            return _image_of(_load_item(self.images, index), index, self.image_key), index
        except Exception as error:
            error.add_note(f"while loading item {index} of `images`")
            raise


def stack_images(items: Sequence[tuple[Tensor, int]]) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
    """Stack indexed images into a batch.

    Raises:
        ValueError: The images differ in shape.
    """
    first, first_index = items[0]
    for image, index in items:
        if image.shape != first.shape:
            raise value_error(
                "Images of a batch must have the same shape",
                f"{tuple(first.shape)} in item {first_index} and {tuple(image.shape)} in item {index}",
                "Resize and crop them to one size in the transform",
            )
    return torch.stack([image for image, _ in items]), torch.tensor([index for _, index in items])


def _check_map_style(images: object) -> None:
    is_map_style = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    if isinstance(images, IterableDataset | str) or not is_map_style:
        raise type_error(
            "`images` must be a map-style dataset, with `__len__` and `__getitem__`",
            type(images).__name__,
            "Load its items into a list, or write a Dataset that loads an item by its index",
        )


def _check_indices(images: object) -> None:
    """Raise TypeError if a `Subset` has a mask, whose values would be taken for the indices 0 and 1."""
    if type(images) is ConcatDataset:
        for dataset in images.datasets:
            _check_indices(dataset)
    elif type(images) is Subset:
        _check_indices(images.dataset)
        first = next(iter(images.indices), None)
        if isinstance(first, bool | np.bool_) or (isinstance(first, Tensor) and first.dtype == torch.bool):
            remedy = "Pass the indices at which it is true, for example `mask.nonzero().flatten()`"
            raise type_error("`Subset` must have indices", "a mask of booleans", remedy)


def _load_item(images: Any, index: int) -> object:  # noqa: ANN401 (the dataset of a `Subset` need not have a length)
    """Return an item of a dataset, which gets its index as an integer of Python also in a `Subset`."""
    if type(images) is Subset:
        return _load_item(images.dataset, as_index(images.indices[index]))
    if type(images) is ConcatDataset:
        index = range(len(images))[index]
        number = bisect_right(images.cumulative_sizes, index)
        n_before = images.cumulative_sizes[number - 1] if number else 0
        return _load_item(images.datasets[number], index - n_before)
    return images[index]


def _image_of(item: object, index: int, image_key: str | None) -> Tensor:
    """Return the image tensor that an item is or contains."""
    for candidate in _candidates(item, image_key):
        if isinstance(candidate, Tensor) and candidate.ndim == 3 and candidate.is_floating_point():  # noqa: PLR2004
            return candidate
    key = "" if image_key is None else f" under the key {image_key!r}"
    remedy = "Give the dataset a transform that ends in a float tensor, such as torchvision's ToTensor"
    tensors = [each for each in _candidates(item, image_key) if isinstance(each, Tensor)]
    if any(each.ndim == 4 and len(each) == 1 for each in tensors):  # noqa: PLR2004
        remedy = "Remove the first dimension of the tensor, for example by `image[0]`"
    elif isinstance(item, Mapping) and image_key is None and "pixel_values" in item:
        remedy = 'Return one tensor: `processor(image, return_tensors="pt")["pixel_values"][0]`'
    elif isinstance(item, Mapping):
        remedy += ", or name the key of the image: IndexedImages(images, image_key=...)"
    raise type_error(
        f"An item of `images` must be or contain a floating-point image tensor (c, h, w){key}",
        f"{_description(item)} in item {index}",
        remedy,
    )


def _candidates(item: object, image_key: str | None) -> list[object]:
    """Return the parts of an item that may be its image, in the order of preference."""
    if isinstance(item, Mapping):
        keys = [image_key] if image_key is not None else [key for key in _IMAGE_KEYS if key in item]
        return [item.get(key) for key in keys or islice(item, 1)]
    if image_key is not None:
        return []
    return list(islice(item, 1)) if isinstance(item, Sequence) and not isinstance(item, str) else [item]


def _description(item: object) -> str:
    """Return the types and shapes of an item, and of its first fields."""
    if isinstance(item, Mapping):
        fields = [f"{key!r}: {_type_and_shape(value)}" for key, value in islice(item.items(), _FIELDS_NAMED)]
        return f"a dictionary of {', '.join(fields) or 'nothing'}"
    if isinstance(item, Sequence) and not isinstance(item, str):
        fields = [_type_and_shape(value) for value in islice(item, _FIELDS_NAMED)]
        return f"a {type(item).__name__} of {', '.join(fields) or 'nothing'}"
    return _type_and_shape(item)


def _type_and_shape(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__
