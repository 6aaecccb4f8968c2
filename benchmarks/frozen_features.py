"""Features of the untrained models on the images of the five datasets, in files, and subsets by images per class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from settings import PHOTO_SETS, preset
from setups import build_model, open_data
from torch import Tensor
from torch.nn.functional import normalize

from udmlss import embed

SETS = (*PHOTO_SETS, "glyphs")
HALVES = ("train", "test")
CLASS_SIZES = (20, 10, 5)  # images per class in the subsets
_UNEQUAL = (3, 57)  # images of the first class, and how many more the last class has about
_MOST_IMAGES = 5000  # a half with more images is represented by its first classes

Features = Mapping[str, tuple[Tensor, Tensor]]  # by half: features (n, d) and classes (n,)


@dataclass(frozen=True)
class Case:
    """Images that are clustered: a half of a dataset, or a subset with fewer images per class.

    Args:
        data: Name of the dataset.
        half: Half of the classes, "train" or "test".
        subset: "all", "unequal", or the number of images per class.
        features: Features (n, d).
        classes: Class of each image (n,), from 0 without gaps.
    """

    data: str
    half: str
    subset: str
    features: Tensor
    classes: NDArray[np.int64]

    @cached_property
    def rows(self) -> Tensor:
        """Features at unit length (n, d)."""
        return normalize(self.features)

    @property
    def n_classes(self) -> int:
        return int(self.classes.max()) + 1

    @property
    def median_size(self) -> int:
        return int(np.median(np.bincount(self.classes)))


def load_features(data: str, root: Path, cache: Path) -> Features:
    """Return the features of both halves from a file of the folder `cache`. A missing file is written."""
    path = cache / f"{data}.pt"
    if not path.exists():
        settings = preset(data)
        images, model = open_data(settings, root / data), build_model(settings, seed=0)
        halves = zip(HALVES, ((images.plain, images.labels), (images.test, images.test_labels)), strict=True)
        found = {half: (embed(model, of_half, output="features"), classes) for half, (of_half, classes) in halves}
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
    saved: dict[str, Any] = torch.load(path)
    return saved


def cases(features: Mapping[str, Features]) -> list[Case]:
    """Return the halves of all datasets, each followed by its subsets."""
    return [case for data, halves in features.items() for half in HALVES for case in _cases(data, half, *halves[half])]


def _cases(data: str, half: str, features: Tensor, labels: Tensor) -> Iterator[Case]:
    classes = np.unique(labels.numpy(), return_inverse=True)[1]
    for subset, indices in _subsets(classes, np.random.default_rng(0)):
        retained = np.unique(classes[indices], return_inverse=True)[1]
        yield Case(data, half, subset, features[torch.from_numpy(indices)].float(), retained)


def _subsets(classes: NDArray[np.int64], generator: np.random.Generator) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield the names of subsets and the indices of their images."""
    n_retained = int(np.searchsorted(np.bincount(classes).cumsum(), _MOST_IMAGES, side="right"))
    classes = classes[classes < n_retained] if len(classes) > _MOST_IMAGES else classes
    members = [np.flatnonzero(classes == number) for number in range(int(classes.max()) + 1)]
    yield "all", np.arange(len(classes))
    median = np.median([len(indices) for indices in members])
    for size in CLASS_SIZES:
        if median > size:
            yield str(size), _sample(members, [size] * len(members), generator)
    if median > max(CLASS_SIZES):
        sizes = [_UNEQUAL[0] + _UNEQUAL[1] * number // len(members) for number in range(len(members))]
        yield "unequal", _sample(members, sizes, generator)


def _sample(
    members: Sequence[NDArray[np.int64]], sizes: Sequence[int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Sample the indices of at most the given number of images of each class."""
    return np.concatenate([generator.permutation(indices)[:size] for indices, size in zip(members, sizes, strict=True)])
