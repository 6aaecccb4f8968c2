"""Small pictures of the images of a dataset, as Pillow images and as data URIs."""

import base64
import os
from collections.abc import Mapping, Sequence
from copy import copy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from udmlss._checks import type_error, value_error
from udmlss.data.image_files import ImageFiles
from udmlss.data.image_reader import read_image
from udmlss.data.path_lists import short_name
from udmlss.data.tar_images import TarImages

_WHITE = (255, 255, 255)
_PLACEHOLDER, _CROSS = (224, 226, 229), (130, 136, 143)
_IMAGE_KEYS = ("image", "pixel_values")
_JPEG_QUALITY = 80
_DECODED_PER_SIZE = 2  # resolution of decoded JPEG files, in multiples of that of the small picture


class Thumbnails:
    """Small pictures of images, each read at most once. An image that cannot be read becomes a gray placeholder.

    Args:
        images: Paths of image files, or a map-style dataset. An item is a path, an image of Pillow, an image tensor
            (c, h, w), or a sequence or dictionary that holds one of these. `ImageFiles` and `TarImages` are read
            without their transform, which may augment or normalize images. Of another dataset with `paths`, these
            files are read.
        size: Length of the longer side in pixels. Smaller images retain their size.

    Attributes:
        unreadable: Rows that could not be read so far.

    Raises:
        TypeError: `images` is not a sequence or a map-style dataset.
        ValueError: There are no images.
    """

    def __init__(self, images: Any, size: int = 112) -> None:  # noqa: ANN401 (any dataset)
        is_map_style = hasattr(images, "__len__") and hasattr(images, "__getitem__")
        if isinstance(images, str | bytes | Mapping) or not is_map_style:
            rule = "`images` must be a sequence of paths or a map-style dataset"
            raise type_error(rule, type(images).__name__, "Pass a list of paths, or a torch.utils.data.Dataset")
        if len(images) == 0:
            raise value_error("`images` must hold at least one image", "none", "Check the folder or the split")
        paths = getattr(images, "paths", None)
        has_paths = isinstance(paths, Sequence) and len(paths) == len(images)
        self.size = size
        self._names: Any = paths if has_paths else images
        if isinstance(images, ImageFiles | TarImages):
            images = copy(images)
            images.transform, images.min_size = None, _DECODED_PER_SIZE * size
            self.images: Any = images
        else:
            self.images = self._names
        self.unreadable: set[int] = set()
        self._pictures: dict[int, Image.Image] = {}
        self._uris: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_pictures(self) -> int:
        """Number of different images that were returned as data URIs so far."""
        return len(self._uris)

    def name(self, row: int) -> str:
        """Return the name of an image file with that of its folder, or the row of an image that is not a file."""
        item = self._names[row] if isinstance(self._names, Sequence) else None
        if isinstance(item, str | os.PathLike):
            return os.fsencode(short_name(item)).decode(errors="replace")  # file names need not be valid Unicode
        return f"image {row}"

    def picture(self, row: int) -> Image.Image:
        """Return an image as an RGB image of Pillow whose longer side has at most `size` pixels."""
        if row not in self._pictures:
            try:
                self._pictures[row] = _shrink(self.images[row], self.size)
            except Exception:  # noqa: BLE001 (datasets and Pillow's readers raise errors of many types)
                self.unreadable.add(row)
                self._pictures[row] = _placeholder(self.size)
        return self._pictures[row]

    def uri(self, row: int) -> str:
        """Return an image as a data URI of a JPEG file."""
        if row not in self._uris:
            buffer = BytesIO()
            self.picture(row).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
            self._uris[row] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        return self._uris[row]


def _shrink(item: object, size: int) -> Image.Image:
    found = _image_in(item)
    if isinstance(found, str | os.PathLike):
        return _read_file(Path(found), size)
    picture = found if isinstance(found, Image.Image) else _from_pixels(found)
    picture = picture.convert("RGB")
    picture.thumbnail((size, size))
    return picture


def _image_in(item: object) -> Any:  # noqa: ANN401 (a path, an image or pixels)
    if isinstance(item, Mapping):
        keys = [key for key in _IMAGE_KEYS if key in item] or list(item)
        return item[keys[0]]
    return item[0] if isinstance(item, Sequence) and not isinstance(item, str) else item


def _read_file(path: Path, size: int) -> Image.Image:
    picture = read_image(path.expanduser(), _WHITE, None, min_size=_DECODED_PER_SIZE * size)
    picture.thumbnail((size, size))
    return picture


def _from_pixels(pixels: object) -> Image.Image:
    """Return the image of a tensor (c, h, w) or of an array (h, w, c); values outside of the usual range are scaled."""
    if isinstance(pixels, Tensor):
        pixels = pixels.detach().to("cpu", torch.float32 if pixels.is_floating_point() else None)
        pixels = pixels.movedim(0, -1).numpy() if pixels.ndim == 3 else pixels.numpy()  # noqa: PLR2004
    values = np.asarray(pixels)
    if values.dtype != np.uint8:
        values = np.nan_to_num(values, posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        scaled = (values - low) * (255 / (high - low) if high > low else 0.0)
        values = np.rint(scaled).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 1:  # noqa: PLR2004
        values = values[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(values[..., :3] if values.ndim == 3 else values))  # noqa: PLR2004


def _placeholder(size: int) -> Image.Image:
    picture = Image.new("RGB", (size, size), _PLACEHOLDER)
    draw, near, far = ImageDraw.Draw(picture), size // 3, size - size // 3
    draw.line((near, near, far, far), _CROSS, 3)
    draw.line((near, far, far, near), _CROSS, 3)
    return picture
