"""A reader of image files that returns what an image viewer shows, as RGB images with 8 bits per channel."""

import errno
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from operator import index as as_index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from udmlss._checks import check_integer, check_number, value_error

if TYPE_CHECKING:
    from PIL.Image import Image

Color = tuple[int, int, int]
ValueRange = tuple[float, float]

_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1  # values of the last two
_MAX_VALUE = 255
_PERMITTED, _READABLE = "must not be larger than Pillow permits", "must exist and be readable"
_COMPLETE = "must be a complete image file"
_SYSTEM_ERRORS = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM}
# Pillow scales the pixels to 8 bits per channel, but not the transparent color.
_SCALE_OF_RAW_MODE = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def read_image(
    path: Path,
    background: Color,
    value_range: ValueRange | None,
    content: bytes | None = None,
    min_size: int | None = None,
) -> "Image":
    """Return the first frame of an image file as an RGB image with 8 bits per channel.

    Args:
        path: Path of the file, which error messages contain.
        background: Color of the background behind transparent pixels.
        value_range: Values of the first and the last shade of gray, for files with a single channel of more than 8
            bits. None means 0..65535 for 16 bits without a sign. For other numbers it means 0..1 (floating point) or
            0..255 (integers) if all values are in this range, and otherwise the smallest and the largest value of the
            file.
        content: Bytes of the file. None reads the file.
        min_size: Shorter side in pixels to which JPEG files may be reduced, by 2, 4 or 8, while they are decoded. None
            reads all pixels.

    Raises:
        OSError: The file is missing, damaged or not an image, or there are too many open files or an error of the disk.
        MemoryError: There is not enough memory.
    """
    pillow = import_pillow()
    try:
        return _read(path if content is None else content, background, value_range, min_size)
    except pillow.DecompressionBombError as error:
        message = f"{path} {_PERMITTED}, got {error}. Raise PIL.Image.MAX_IMAGE_PIXELS."
        raise OSError(message) from error
    except (FileNotFoundError, PermissionError) as error:
        message = f"{path} {_READABLE}, got {error.strerror}. Check the path and its permissions."
        raise OSError(message) from error
    except Exception as error:  # Pillow's readers raise errors of many types for damaged files
        if is_system_error(error):
            error.add_note(f"while reading {path}")
            raise
        raise OSError(describe_damage(path, describe_error(error))) from error


def open_image(source: Path | bytes) -> "Image":
    """Open an image file, or the bytes of one, without reading the pixels."""
    image: Image = import_pillow().open(BytesIO(source) if isinstance(source, bytes) else source)
    return image


def read_orientation(image: "Image") -> object:
    """Return the orientation in the EXIF or XMP data; 1, which means upright, if these data are damaged."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (viewers ignore damaged EXIF data, for which Pillow raises errors of many types)
        return 1


def read_tag(image: "Image", tag: int) -> object:
    """Return the value of a TIFF tag, or None if the file is not a TIFF file or does not contain it."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def has_more_than_8_bits(image: "Image") -> bool:
    """Return whether a channel of an image that is open, and not read yet, has more than 8 bits."""
    n_bits = read_tag(image, _BITS_PER_SAMPLE)
    is_deep = isinstance(n_bits, int) and n_bits > 8  # noqa: PLR2004
    return is_deep or image.mode.startswith(("I", "F")) or ";16B" in _raw_mode(image)


def describe_damage(path: Path, reason: str) -> str:
    """Return the message of the error for a damaged image."""
    return f"{path} {_COMPLETE}, got {reason}. Download or unpack it again, or remove it."


def is_unreadable(message: str) -> bool:
    """Return whether the message of an error is that of `read_image` for a file that `find_damaged` returns."""
    return any(rule in message for rule in (_PERMITTED, _READABLE, _COMPLETE))


def is_system_error(error: BaseException) -> bool:
    """Return whether an error is due to the system, such as too many open files, and not to the content of a file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS)


def describe_error(error: BaseException) -> str:
    """Return the message of an error, or its type if it has no message."""
    return str(error) or type(error).__name__


def as_color(background: str | Sequence[int]) -> Color:
    """Return a color as red, green and blue in 0..255.

    Args:
        background: A color name or hexadecimal color that Pillow accepts, or three integers.

    Raises:
        ValueError: `background` is not a color.
    """
    color: Sequence[int] = ()
    with suppress(ValueError, TypeError):
        color = _named_color(background) if isinstance(background, str) else [*map(_as_integer, background)]
    if len(color) != 3 or not all(0 <= value <= _MAX_VALUE for value in color):  # noqa: PLR2004
        rule = "`background` must be a color: a name such as 'white', or three integers in 0..255"
        raise value_error(rule, repr(background), "Pass, for example, (255, 255, 255)")
    red, green, blue = color
    return red, green, blue


def as_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """Return the values of black and of white, or None.

    Raises:
        ValueError: `value_range` is not a pair of finite numbers, or not ascending.
        TypeError: `value_range` does not hold numbers.
    """
    if value_range is None:
        return None
    remedy = "Pass the values of black and of white"
    if not isinstance(value_range, Sequence) or len(value_range) != 2:  # noqa: PLR2004
        raise value_error("`value_range` must be a pair of numbers", repr(value_range), remedy)
    low, high = value_range
    check_number("value_range[0]", low)
    check_number("value_range[1]", high)
    if not low < high:
        raise value_error("`value_range` must be ascending", value_range, remedy)
    return float(low), float(high)


def as_min_size(min_size: int | None) -> int | None:
    """Return the shorter side that images need, or None.

    Raises:
        ValueError: `min_size` is below 1.
        TypeError: `min_size` is not an integer.
    """
    if min_size is None:
        return None
    check_integer("min_size", min_size, 1)
    return int(min_size)


def _as_integer(value: SupportsIndex) -> int:
    if isinstance(value, bool):
        raise TypeError
    return as_index(value)


def _named_color(name: str) -> Sequence[int]:
    import_pillow()
    from PIL import ImageColor  # noqa: PLC0415 (as below)

    return ImageColor.getrgb(name)


def import_pillow() -> Any:  # noqa: ANN401 (a module)
    """Return the module `PIL.Image`, which recognizes all formats."""
    from PIL import Image  # noqa: PLC0415 (`import udmlss` does not import it)

    Image.preinit()  # recognizes common formats first
    Image.init()  # While another thread registers the formats, Pillow does not recognize all of them
    return Image


def _read(source: Path | bytes, background: Color, value_range: ValueRange | None, min_size: int | None) -> "Image":
    with open_image(source) as image:
        if image.format == "PNG":
            with open_image(source) as same_image:
                same_image.verify()  # Pillow compares the checksums of the pixels only here
        transparent_color = _transparent_color(image)  # before loading, which deletes the raw mode
        if min_size is not None:
            image.draft(None, (min_size, min_size))
        image.load()
        orientation = read_orientation(image)
        if transparent_color is not None:
            image.info["transparency"] = transparent_color
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_8_bits(image, value_range)  # noqa: PLW2901 (the file is closed by its own context manager)
        rgb = _composite(image, background)
    return _rotate_upright(rgb, orientation)


def _transparent_color(image: "Image") -> object:
    """Return the transparent gray value or color of a PNG file in the scale of the loaded pixels, or None."""
    color = image.info.get("transparency")
    scale = _SCALE_OF_RAW_MODE.get(_raw_mode(image))
    if scale is None or isinstance(color, bytes | None):
        return color  # bytes are the opacities of a palette
    return tuple(int(value * scale) for value in color) if isinstance(color, tuple) else int(color * scale)


def _raw_mode(image: "Image") -> str:
    """Return the mode of the pixels in the file, such as "RGB;16B"; another text if Pillow does not know it."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def _rotate_upright(image: "Image", orientation: object) -> "Image":
    from PIL import ImageOps  # noqa: PLC0415 (optional)

    image.info.clear()  # A transform that applies the orientation of the file must not apply it again
    image.getexif()[_ORIENTATION] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_8_bits(image: "Image", value_range: ValueRange | None) -> "Image":
    """Scale an image of one channel with more than 8 bits to 8 bits; a transparent value becomes an alpha channel."""
    pillow = import_pillow()
    pixels = _pixels(image)
    low, high = value_range or _value_range(image, pixels)
    finite = np.nan_to_num(pixels.astype(np.float64), nan=low, posinf=high, neginf=low)
    factor = _MAX_VALUE / (high - low) if high > low else 0  # a constant image outside of the usual range is black
    gray = np.clip(np.rint((finite - low) * factor), 0, _MAX_VALUE).astype(np.uint8)
    if read_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = _MAX_VALUE - gray
    scaled: Image = pillow.fromarray(gray)
    transparent_value = image.info.get("transparency")
    if transparent_value is not None:
        opacity = np.where(pixels == transparent_value, 0, _MAX_VALUE).astype(np.uint8)
        scaled.putalpha(pillow.fromarray(opacity))
    return scaled


def _pixels(image: "Image") -> NDArray[Any]:
    pixels = np.asarray(image)
    is_unsigned = image.mode == "I" and read_tag(image, _SAMPLE_FORMAT) == _UNSIGNED
    return pixels.view(np.uint32) if is_unsigned else pixels  # Pillow has no unsigned 32-bit integers


def _value_range(image: "Image", pixels: NDArray[Any]) -> ValueRange:
    """Return the values of black and of white."""
    if image.mode != "F" and (image.mode != "I" or image.format in {"PNG", "PPM"}):  # 16 bits without a sign
        n_bits = read_tag(image, _BITS_PER_SAMPLE)
        return 0, 2 ** (n_bits if isinstance(n_bits, int) else 16) - 1
    finite = pixels[np.isfinite(pixels)]
    usual_high = 1 if image.mode == "F" else _MAX_VALUE
    if not finite.size or (finite.min() >= 0 and finite.max() <= usual_high):
        return 0, usual_high
    return float(finite.min()), float(finite.max())


def _composite(image: "Image", background: Color) -> "Image":
    """Convert an image to RGB, with transparent pixels in front of a background."""
    pillow = import_pillow()
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # it would copy an RGB image
    if image.mode == "La":
        image = image.convert("LA")  # Pillow does not convert it to RGBA
    composite: Image = pillow.new("RGBA", image.size, (*background, _MAX_VALUE))
    composite.alpha_composite(image.convert("RGBA"))
    return composite.convert("RGB")
