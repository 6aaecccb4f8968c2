"""The inspection of one image file."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from udmlss.data.image_reader import (
    describe_error,
    has_more_than_8_bits,
    is_system_error,
    open_image,
    read_image,
    read_orientation,
)
from udmlss.data.quality.near_duplicates import make_thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

CHECKSUM_BYTES = 8
_BACKGROUND = (255, 255, 255)
_MAX_RANGE = 2  # of the values in an image of one color, which a lossy format may change
_ORIENTATIONS = range(2, 9)  # 1 means upright; other values are invalid


class Inspection(NamedTuple):
    """Result of the inspection of a file.

    Attributes:
        findings: Kind and detail of each finding.
        checksum: Checksum of the file; empty if the image cannot be read.
        thumbnail: Gray values of the thumbnail; empty if the image cannot be read.
    """

    findings: tuple[tuple[str, str], ...]
    checksum: bytes = b""
    thumbnail: bytes = b""


def inspect_file(path: Path, min_size: int) -> Inspection:
    """Read an image file and describe what is unusual in it.

    Args:
        path: Path of the file.
        min_size: Shorter side in pixels below which an image is tiny.
    """
    try:
        content = path.read_bytes()
        image = read_image(path, _BACKGROUND, None, content)
    except OSError as error:
        if is_system_error(error):
            raise
        return Inspection((("broken", describe_error(error.__cause__ or error)),))
    with open_image(content) as stored:
        findings = (*_inspect_pixels(image, min_size), *_inspect_format(stored))
    checksum = blake2b(content, digest_size=CHECKSUM_BYTES).digest()
    return Inspection(findings, checksum, make_thumbnail(image))


def _inspect_pixels(image: "Image", min_size: int) -> Iterator[tuple[str, str]]:
    if min(image.size) < min_size:
        yield "tiny", f"{image.width} x {image.height} pixels"
    colors = np.asarray(image).reshape(-1, 3)
    low, high = colors.min(axis=0), colors.max(axis=0)
    if (high - low <= _MAX_RANGE).all():
        yield "constant", f"color {tuple(low.tolist())}"


def _inspect_format(image: "Image") -> Iterator[tuple[str, str]]:
    if has_more_than_8_bits(image):
        yield "16-bit", f"{image.format} of mode {image.mode}"
    if image.has_transparency_data:
        yield "transparent", f"{image.format} of mode {image.mode}"
    orientation = read_orientation(image)
    if orientation in _ORIENTATIONS:
        yield "rotated", f"orientation {orientation}"
    if image.mode == "CMYK":
        yield "CMYK", f"{image.format} of mode {image.mode}"
    if image.mode in {"P", "PA"}:
        yield "palette", f"{image.format} of mode {image.mode}"
