"""Rendered characters, a dataset that needs no download."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from udmlss._checks import check_choice, import_optional
from udmlss._files import replace_file

_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
}
_FACES = tuple(family + style for family, styles in _STYLES.items() for style in styles)
_MIN_FACES = 8  # per character
_SCRIPTS = {"train": ("LATIN ",), "test": ("GREEK ", "CYRILLIC ", "ARMENIAN ", "GEORGIAN ")}
_IMAGE_SIZE, _MARGIN = 32, 1
_FONT_SIZES = range(24, 7, -1)  # in order of preference
_CACHE_VERSION = 1  # must be raised whenever the same fonts would give other images
_RECORD = np.dtype([("codepoint", "<u4"), ("face", "u1"), ("image", "u1", (_IMAGE_SIZE, _IMAGE_SIZE))])


@dataclass(frozen=True, eq=False, repr=False)
class Glyphs(Dataset[tuple[Tensor, int]]):
    """Images of characters, in which each character is a class; an item is `(image, label)`.

    Args:
        images: White characters on black, with values in 0..1.
        labels: Character of each image, an index into `characters`.
        face_of: Typeface of each image, an index into `faces`.
        characters: The characters.
        faces: Names of the typefaces.
        transform: Function that is applied to the image (1, 32, 32) of an item when it is loaded. It does not change
            `images`.
    """

    images: Float[Tensor, "n 1 32 32"]
    labels: Int64[Tensor, " n"]
    face_of: Int64[Tensor, " n"]
    characters: tuple[str, ...]
    faces: tuple[str, ...]
    transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].clone()  # an in-place transform must not change the dataset
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def __repr__(self) -> str:
        return f"Glyphs({len(self)} images of {len(self.characters)} characters in {len(self.faces)} typefaces)"


def glyphs(
    split: Literal["train", "test"],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    cache: str | os.PathLike[str] | None = "user",
) -> Glyphs:
    """Render the characters of a split in the fonts of matplotlib, or load them from a cache.

    The classes are the letters and symbols that at least 8 of 16 typefaces contain: DejaVu Sans, DejaVu Sans Mono,
    DejaVu Serif and STIX General, each in regular, bold, italic and bold italic. The training split is Latin, with
    12,034 images of 939 characters. The test split is Greek, Cyrillic, Armenian and Georgian, with 9,628 images of
    783 characters.

    A character is rendered at 24 pixels per em, or at the largest smaller size that leaves a margin of one pixel. Its
    text box, which extends down to the baseline, is centered in the image. Some characters look alike, such as the
    Greek and the Cyrillic capital A, so that a recall of 100 % is impossible.

    Args:
        split: "train" or "test".
        transform: Function that is applied to the image (1, 32, 32) of an item when it is loaded.
        cache: Path of the folder in which both splits are stored, in one file of 22 MB. "user" is
            `$XDG_CACHE_HOME/udmlss`, or `~/.cache/udmlss` without this variable. None disables the cache. A damaged
            file is replaced, and each version of matplotlib and Pillow has its own file. If the folder cannot be
            written, the characters are rendered without a cache.

    Returns:
        The images, ordered by character, then by typeface.

    Raises:
        ValueError: `split` is not "train" or "test".
        ImportError: matplotlib is not installed.

    Example:
        >>> train = glyphs("train")
        >>> image, label = train[0]
        >>> image.shape, train.characters[label]
        (torch.Size([1, 32, 32]), 'A')

    References:
        matplotlib includes the fonts and their licenses: DejaVu (https://dejavu-fonts.github.io, Bitstream Vera
        license) and STIX (https://www.stixfonts.org, STIX Font License). This library contains no fonts.
    """
    check_choice("split", split, tuple(_SCRIPTS))
    records = _load_records(_user_cache() if cache == "user" else cache)
    records = records[[_split_of(code) == split for code in records["codepoint"].tolist()]]
    codepoints, labels = np.unique(records["codepoint"], return_inverse=True)
    return Glyphs(
        images=torch.from_numpy(records["image"].astype(np.float32) / 255).unsqueeze(1),
        labels=torch.from_numpy(labels.astype(np.int64)),
        face_of=torch.from_numpy(records["face"].astype(np.int64)),
        characters=tuple(map(chr, codepoints)),
        faces=_FACES,
        transform=transform,
    )


def _split_of(codepoint: int) -> str | None:
    character = chr(codepoint)
    if unicodedata.category(character)[0] not in "LS":  # the scripts also contain marks and punctuation
        return None
    name = unicodedata.name(character, "")
    return next((split for split, scripts in _SCRIPTS.items() if name.startswith(scripts)), None)


def _user_cache() -> Path | None:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):  # the user has no home folder
        return (root if root.is_absolute() else Path.home() / ".cache") / "udmlss"
    return None


def _load_records(folder: str | os.PathLike[str] | None) -> Shaped[np.ndarray, " n"]:
    mpl = import_optional("matplotlib", "`glyphs`", '"udmlss[demo]"')
    import PIL  # noqa: PLC0415 (`import udmlss` does not import it)

    if folder is None:
        return _render_all()
    name = f"glyphs-v{_CACHE_VERSION}-matplotlib{mpl.__version__}-pillow{PIL.__version__}.bin"
    path = Path(folder).expanduser() / name
    with suppress(OSError):
        digest, body = (content := path.read_bytes())[:32], content[32:]
        if sha256(body).digest() == digest:
            return np.frombuffer(body, _RECORD)
    records = _render_all()
    with suppress(OSError), replace_file(path) as part:  # without a cache the next call renders the characters again
        part.write_bytes(sha256(body := records.tobytes()).digest() + body)
    return records


def _render_all() -> Shaped[np.ndarray, " n"]:
    import matplotlib as mpl  # noqa: PLC0415 (optional)
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 (optional)

    files = [str(Path(mpl.get_data_path(), "fonts", "ttf", f"{face}.ttf")) for face in _FACES]
    charmaps = [FT2Font(file).get_charmap() for file in files]
    n_faces = Counter(chain.from_iterable(charmaps))
    classes = {code for code, count in n_faces.items() if count >= _MIN_FACES and _split_of(code)}
    records = []
    for face, (file, charmap) in enumerate(zip(files, charmaps, strict=True)):
        render = _build_renderer(file)
        records += [(code, face, render(chr(code))) for code in classes.intersection(charmap)]
    return np.array(sorted(records, key=itemgetter(0, 1)), _RECORD)


def _build_renderer(file: str) -> Callable[[str], UInt8[np.ndarray, "h w"]]:
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 (optional)

    layout = ImageFont.Layout.BASIC  # the other layout engine is not installed everywhere
    fonts = [ImageFont.truetype(file, size, layout_engine=layout) for size in _FONT_SIZES]

    def render(character: str) -> UInt8[np.ndarray, "h w"]:
        for font in fonts:  # pragma: no branch (every character fits at the smallest size)
            left, top, right, bottom = font.getbbox(character)
            if max(right - left, bottom - top) <= _IMAGE_SIZE - 2 * _MARGIN:
                break
        image = Image.new("L", (_IMAGE_SIZE, _IMAGE_SIZE))
        # At fractions of a pixel, Pillow cuts rows off some characters.
        position = (_IMAGE_SIZE + 1 - left - right) // 2, (_IMAGE_SIZE + 1 - top - bottom) // 2
        ImageDraw.Draw(image).text(position, character, fill=255, font=font)
        return np.asarray(image)

    return render
