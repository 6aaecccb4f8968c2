"""The data set that needs no download: characters drawn on the spot in the fonts that matplotlib ships."""

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
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from udmlss._checks import check_choice

_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
}
_FACES = tuple(family + style for family, styles in _STYLES.items() for style in styles)
_FEWEST_FACES = 8
_SCRIPTS = {"train": ("LATIN ",), "test": ("GREEK ", "CYRILLIC ", "ARMENIAN ", "GEORGIAN ")}
_SIDE, _MARGIN = 32, 1
_FONT_SIZES = range(24, 7, -1)  # the first at which a character fits is taken
_FORMAT = 1  # raise it whenever the same fonts would give other records
_RECORD = np.dtype([("codepoint", "<u4"), ("face", "u1"), ("image", "u1", (_SIDE, _SIDE))])


@dataclass(frozen=True, eq=False, repr=False)
class Glyphs(Dataset[tuple[Tensor, int]]):
    """Images of characters, labelled by character; an item is `(image, label)`.

    Args:
        images: White on black, in 0..1.
        labels: The character of each image, an index into `characters`.
        face_of: The face each image was drawn in, an index into `faces`.
        characters: The classes.
        faces: The fonts' names.
        transform: Applied to the image (1 32 32) of an item when it is taken; `images` stays as it is.
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
        image = self.images[index].clone()  # a transform that works in place must not reach the data set
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def __repr__(self) -> str:
        return f"Glyphs({len(self)} images of {len(self.characters)} characters in {len(self.faces)} faces)"


def glyphs(
    split: Literal["train", "test"],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    cache: str | os.PathLike[str] | None = "user",
) -> Glyphs:
    """Draw the characters of one split, or read them from the cache.

    A class is a letter or symbol that 8 or more of 16 faces have: DejaVu Sans, DejaVu Sans Mono, DejaVu Serif
    and STIX General, each regular, bold, italic and bold italic. Training is on Latin (12,034 images of 939
    characters), testing on Greek, Cyrillic, Armenian and Georgian (9,628 of 783). A glyph is drawn at 24 pixels
    to the em, or as much smaller as leaves a margin of one pixel, and centred by its text box, which reaches
    down to the baseline: an accent stays above the middle. No score reaches 100 %, for some characters are
    drawn alike, such as the Greek and the Cyrillic capital A.

    Args:
        split: `"train"` or `"test"`.
        transform: Applied to the image (1 32 32) of an item when it is taken.
        cache: The folder of the one file (22 MB) that keeps both splits. `"user"` is `$XDG_CACHE_HOME/udmlss`
            or else `~/.cache/udmlss`; `None` draws afresh and keeps nothing. A damaged file, or one that
            another matplotlib or Pillow made, is not used; a folder that cannot be written is left alone.

    Returns:
        The split, ordered by character, then by face.

    Raises:
        ValueError: There is no such split.
        ImportError: matplotlib or Pillow is missing.

    Example:
        >>> train = glyphs("train")
        >>> image, label = train[0]
        >>> image.shape, train.characters[label]
        (torch.Size([1, 32, 32]), 'A')

    References:
        matplotlib ships the fonts with their licences: DejaVu (https://dejavu-fonts.github.io, Bitstream Vera
        licence) and STIX (https://www.stixfonts.org, STIX Font License). No font is copied into this library.
    """
    check_choice("split", split, tuple(_SCRIPTS))
    records = _records(_user_cache() if cache == "user" else cache)
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
    if unicodedata.category(character)[0] not in "LS":  # the scripts have marks and punctuation, too
        return None
    name = unicodedata.name(character, "")
    return next((split for split, scripts in _SCRIPTS.items() if name.startswith(scripts)), None)


def _user_cache() -> Path | None:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):  # a user without a home folder
        return (root if root.is_absolute() else Path.home() / ".cache") / "udmlss"
    return None


def _records(folder: str | os.PathLike[str] | None) -> Shaped[np.ndarray, " n"]:
    try:
        import matplotlib as mpl  # noqa: PLC0415 (optional)
        import PIL  # noqa: PLC0415 (optional)
    except ImportError as error:
        message = f"`glyphs` needs matplotlib and Pillow, got no {error.name}. Type: "
        raise ImportError(message + 'pip install "udmlss[demo]"', name=error.name) from error
    if folder is None:
        return _draw_all()
    name = f"glyphs-v{_FORMAT}-matplotlib{mpl.__version__}-pillow{PIL.__version__}.bin"
    path = Path(folder).expanduser() / name
    with suppress(OSError):
        digest, body = (content := path.read_bytes())[:32], content[32:]
        if sha256(body).digest() == digest:
            return np.frombuffer(body, _RECORD)
    records = _draw_all()
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        _write(path, records.tobytes())
    return records


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        beside.write_bytes(sha256(body).digest() + body)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _draw_all() -> Shaped[np.ndarray, " n"]:
    import matplotlib as mpl  # noqa: PLC0415 (optional)
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 (optional)

    files = [str(Path(mpl.get_data_path(), "fonts", "ttf", f"{face}.ttf")) for face in _FACES]
    charmaps = [FT2Font(file).get_charmap() for file in files]
    faces_with = Counter(chain.from_iterable(charmaps))
    classes = {code for code, faces in faces_with.items() if faces >= _FEWEST_FACES and _split_of(code)}
    records = []
    for face, (file, charmap) in enumerate(zip(files, charmaps, strict=True)):
        draw = _pen(file)
        records += [(code, face, draw(chr(code))) for code in classes.intersection(charmap)]
    return np.array(sorted(records, key=itemgetter(0, 1)), _RECORD)


def _pen(file: str) -> Callable[[str], UInt8[np.ndarray, "h w"]]:
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 (optional)

    basic = ImageFont.Layout.BASIC  # the other layout is not installed everywhere
    fonts = [ImageFont.truetype(file, size, layout_engine=basic) for size in _FONT_SIZES]

    def draw(character: str) -> UInt8[np.ndarray, "h w"]:
        for font in fonts:  # pragma: no branch (one fits)
            left, top, right, bottom = font.getbbox(character)
            if max(right - left, bottom - top) <= _SIDE - 2 * _MARGIN:
                break
        image = Image.new("L", (_SIDE, _SIDE))
        # Whole pixels: at fractions of one, Pillow cuts rows off some glyphs.
        corner = (_SIDE + 1 - left - right) // 2, (_SIDE + 1 - top - bottom) // 2
        ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
        return np.asarray(image)

    return draw
