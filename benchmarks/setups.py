"""The images and the untrained model of a run."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cub_resnet50
import quickstart
from folders import open_folder
from settings import Settings

from udmlss import EmbeddingModel
from udmlss.data import Glyphs, ImageFiles, glyphs, split_classes
from udmlss.types import Images


@dataclass(frozen=True)
class Data:
    """The images of a benchmark. Training and test images have no class in common, or are the same images.

    Args:
        train: Training images with their augmentations.
        plain: The same images with test-time transforms.
        labels: Class of each training image, from 0. Upper bounds train on them, and methods whose number of clusters
            depends on the number of classes count them.
        test: Images that are scored.
        test_labels: Class of each test image.
    """

    train: Images
    plain: Images
    labels: Tensor
    test: Images
    test_labels: Tensor


def open_data(settings: Settings, root: Path) -> Data:
    """Open the dataset of the settings.

    The test classes are the second half of the classes, and with `validate` the second half of the training classes.
    With the protocol `own`, the test images are the training images.
    """
    open_split, augment, plain = _opener(settings, root)
    train, clustered = open_split("train", transform=augment), open_split("train", transform=plain)
    if settings.protocol == "own" and settings.validate:
        return Data(train, clustered, train.labels, clustered, train.labels)
    if not settings.validate:
        test = open_split("test", transform=plain)
        if settings.protocol == "unseen":
            return Data(train, clustered, train.labels, test, test.labels)
        images = ConcatDataset([clustered, test])
        labels = torch.cat([train.labels, test.labels + train.labels.max() + 1]).unique(return_inverse=True)[1]
        return Data(ConcatDataset([train, open_split("test", transform=augment)]), images, labels, images, labels)
    first, second = (indices.tolist() for indices in split_classes(train.labels))
    return Data(
        train=Subset(train, first),
        plain=Subset(clustered, first),
        labels=train.labels[first],
        test=Subset(clustered, second),
        test_labels=train.labels[second],
    )


def _opener(settings: Settings, root: Path) -> tuple[Callable[..., Glyphs | ImageFiles], Any, Any]:
    """Return a function that opens a split, and the transforms for training and for testing."""
    if settings.data == "glyphs":
        return glyphs, quickstart.augment, None
    build = partial(cub_resnet50.build_transforms, vary_colors=settings.vary_colors)
    return partial(open_folder, root), *build(settings.backbone, settings.image_size)


def build_model(settings: Settings, seed: int) -> EmbeddingModel:
    """Return the untrained model; the seed decides the weights that are not pretrained."""
    torch.manual_seed(seed)
    if settings.backbone == "small":
        trunk = quickstart.build_trunk(channels=1 if settings.data == "glyphs" else 3)
        n_features = 128 * (settings.image_size // 16) ** 2
    else:
        trunk, _ = cub_resnet50.build_trunk(settings.backbone, settings.image_size)
        n_features = cub_resnet50.FEATURES[settings.backbone]
    model = EmbeddingModel(trunk, nn.Linear(n_features, settings.embedding_size))
    return model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
