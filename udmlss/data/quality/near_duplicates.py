"""Near-duplicates among images, found by the difference hash of their thumbnails."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_BYTES = 72
_WIDTH, _HEIGHT = 9, 8
_N_BITS = (_WIDTH - 1) * _HEIGHT
_MAX_DIFFERENCE = 6  # mean difference of the gray values of two thumbnails
_MAX_COMPARED = 200  # images with an equal part of the hash; images of plain backgrounds have many equal parts

Thumbnails = UInt8[NDArray[np.uint8], "n 72"]
Hashes = UInt64[NDArray[np.uint64], " n"]


def make_thumbnail(image: "Image") -> bytes:
    """Return 8 rows of 9 gray values, each of which is the mean of a part of an image."""
    from PIL import Image  # noqa: PLC0415 (optional)

    return image.convert("L").resize((_WIDTH, _HEIGHT), Image.Resampling.BOX).tobytes()


def find_near_duplicates(thumbnails: Thumbnails, max_distance: int) -> Int64[NDArray[np.int64], " n"]:
    """Return the index of an earlier near-duplicate of each image, or its own index if there is none.

    Two images are near-duplicates if at most `max_distance` of the 64 bits of their difference hashes differ, and the
    gray values of their thumbnails differ by at most 6 of 255 on average. A bit of the hash states whether a gray value
    is larger than the one to its left.
    """
    found, hashes = np.arange(len(thumbnails)), _difference_hashes(thumbnails)
    for pairs in _candidate_pairs(hashes, max_distance + 1):
        earlier, later = pairs[:, found[pairs[1]] == pairs[1]]
        is_near = _hamming_distances(hashes[earlier], hashes[later]) <= max_distance
        earlier, later = earlier[is_near], later[is_near]
        difference = np.abs(thumbnails[earlier].astype(np.int16) - thumbnails[later]).mean(axis=1)
        is_near = difference <= _MAX_DIFFERENCE
        found[later[is_near]] = earlier[is_near]
    return found


def _hamming_distances(one: Hashes, other: Hashes) -> Int64[NDArray[np.int64], " n"]:
    bits = np.unpackbits((one ^ other)[:, None].view(np.uint8), axis=1)
    return np.asarray(bits.sum(axis=1, dtype=np.int64))


def _difference_hashes(thumbnails: Thumbnails) -> Hashes:
    rows = thumbnails.reshape(-1, _HEIGHT, _WIDTH)
    bits = np.packbits((rows[:, :, 1:] > rows[:, :, :-1]).reshape(len(rows), _N_BITS), axis=1)
    return bits.view(">u8").ravel().astype(np.uint64)


def _candidate_pairs(hashes: Hashes, n_parts: int) -> Iterator[Int64[NDArray[np.int64], "2 p"]]:
    """Yield the indices of pairs of hashes with an equal part, the smaller index first.

    If fewer than `n_parts` bits of two hashes differ, at least one of their `n_parts` parts is equal.
    """
    edges = [_N_BITS * number // n_parts for number in range(n_parts + 1)]
    for start, end in pairwise(edges):
        # Rotating the part to the front sorts the hashes by this part, and equal parts by the other bits.
        rotated = (hashes << np.uint64(start)) | (hashes >> np.uint64(_N_BITS - start)) if start else hashes
        order = np.argsort(rotated, kind="stable")
        part = rotated[order] >> np.uint64(_N_BITS - end + start) if end - start < _N_BITS else rotated[order]
        for offset in range(1, min(len(hashes), _MAX_COMPARED + 1)):
            equal = np.flatnonzero(part[offset:] == part[:-offset])
            if not len(equal):
                break
            yield np.sort(np.stack([order[equal], order[equal + offset]]), axis=0)
