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
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cub_resnet50
import quickstart
from folders import open_folder
from settings import Settings

from udmlss import EmbeddingModel
from udmlss.backbones import Backbone, color_augmentation
from udmlss.data import Glyphs, ImageFiles, glyphs, split_classes
from udmlss.types import Images


@dataclass(frozen=True)
class Data:
    """The images of a benchmark. Training and test images have no class in common, or are the same images.

    Args:
        train: Training images with their augmentations.
        train_recolored: The same images with `udmlss.backbones.color_augmentation` as well.
        plain: The same images with test-time transforms.
        labels: Class of each training image, from 0. Upper bounds train on them, and methods whose number of clusters
            depends on the number of classes count them.
        test: Images that are scored.
        test_labels: Class of each test image.
    """

    train: Images
    train_recolored: Images
    plain: Images
    labels: Tensor
    test: Images
    test_labels: Tensor


def open_data(settings: Settings, root: Path) -> Data:
    """Open the dataset of the settings.

    The test classes are the second half of the classes, and with `validate` the second half of the training classes.
    With the protocol `own`, the test images are the training images.
    """
    open_split, *transforms = _opener(settings, root)
    (train, *_), (recolored, *_), plain = (_split(partial(open_split, transform=each), settings) for each in transforms)
    return Data(train, recolored, *plain)


def _opener(settings: Settings, root: Path) -> tuple[Callable[..., Glyphs | ImageFiles], Any, Any, Any]:
    """Return a function that opens a split, and the transforms for training, with changed colors, and for testing."""
    if settings.data == "glyphs":
        return glyphs, quickstart.augment, v2.Compose([color_augmentation(), quickstart.augment]), None
    build = partial(cub_resnet50.build_transforms, settings.backbone, settings.image_size)
    (augment, plain), (recolor, _) = build(), build(change_colors=True)
    return partial(open_folder, root), augment, recolor, plain


def _split(
    open_split: Callable[[str], Glyphs | ImageFiles], settings: Settings
) -> tuple[Images, Tensor, Images, Tensor]:
    """Return the training images, their labels, the test images and their labels."""
    train = open_split("train")
    if settings.protocol == "own":
        images, labels = (train, train.labels) if settings.validate else _join(train, open_split("test"))
        return images, labels, images, labels
    if settings.validate:
        first, second = (indices.tolist() for indices in split_classes(train.labels))
        return Subset(train, first), train.labels[first], Subset(train, second), train.labels[second]
    test = open_split("test")
    return train, train.labels, test, test.labels


def _join(train: Glyphs | ImageFiles, test: Glyphs | ImageFiles) -> tuple[Images, Tensor]:
    labels = torch.cat([train.labels, test.labels + train.labels.max() + 1])
    return ConcatDataset([train, test]), labels.unique(return_inverse=True)[1]


def backbone_of(model: EmbeddingModel, settings: Settings) -> Backbone:
    """Return the trunk of a model with the normalization of the images of the settings."""
    _, plain = cub_resnet50.build_transforms(settings.backbone, settings.image_size)
    normalize = plain.transforms[-1]
    return Backbone(settings.backbone, model.trunk, settings.image_size, tuple(normalize.mean), tuple(normalize.std))


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
