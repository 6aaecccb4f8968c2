"""Generated pictures in files, for the measurements that decode them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from speed_measurements import Sizes

from udmlss.data import find_images

WIDTH, HEIGHT = 500, 375
PER_CLASS = 20
_GRID = (6, 8)  # coarse pixels of a pattern
_NOISE = 12.0  # standard deviation of the pixels, so that files have about the size of photographs


def find_or_make_pictures(sizes: Sizes, folder: Path) -> Sequence[Path]:
    """Return evenly spaced pictures of the folder that `sizes` names, or make some in another folder."""
    if sizes.photos:
        found = find_images(Path(sizes.photos).expanduser())
        return found[:: max(1, len(found) // sizes.pictures)][: sizes.pictures]
    return make_pictures(folder, sizes.pictures)


def make_pictures(folder: Path, n: int) -> list[Path]:
    """Write JPEG files of 500 x 375 pixels, 20 of each class, and return their paths.

    A class has a pattern of colors. Each picture mixes it with a pattern of its own and has noise.
    """
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (max(2, n // PER_CLASS), *_GRID, 3))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05}.jpg" for number in range(n)]
    for number, path in enumerate(paths):
        own = random.integers(0, 256, (*_GRID, 3))
        coarse = (0.75 * patterns[number % len(patterns)] + 0.25 * own).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + _NOISE * random.standard_normal((HEIGHT, WIDTH, 1), np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths
