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
from udmlss.backbones import Backbone, color_augmentation, rotation_augmentation
from udmlss.data import Glyphs, ImageFiles, glyphs, split_classes
from udmlss.types import Images


@dataclass(frozen=True)
class Data:
    """The images of a benchmark. Training and test images have no class in common, or are the same images.

    Args:
        open_train: Returns the training images with their augmentations, and with those of `udmlss.backbones` for
            which `change_colors` or `rotate` is True.
        plain: The same images with test-time transforms.
        labels: Class of each training image, from 0. Upper bounds train on them, and methods whose number of clusters
            depends on the number of classes count them.
        test: Images that are scored.
        test_labels: Class of each test image.
    """

    open_train: Callable[..., Images]
    plain: Images
    labels: Tensor
    test: Images
    test_labels: Tensor

    @property
    def train(self) -> Images:
        """The training images with augmentations that keep colors and orientation."""
        return self.open_train()


def open_data(settings: Settings, root: Path) -> Data:
    """Open the dataset of the settings.

    The test classes are the second half of the classes, and with `validate` the second half of the training classes.
    With the protocol `own`, the test images are the training images.
    """
    open_split = glyphs if settings.data == "glyphs" else partial(open_folder, root)

    def open_images(transform: Any) -> tuple[Images, Tensor, Images, Tensor]:  # noqa: ANN401 (any transform, or None)
        return _split(partial(open_split, transform=transform), settings)

    def open_train(**changes: bool) -> Images:
        return open_images(_transforms(settings, **changes)[0])[0]

    return Data(open_train, *open_images(_transforms(settings)[1]))


def _transforms(settings: Settings, *, change_colors: bool = False, rotate: bool = False) -> tuple[Any, Any]:
    """Return the transforms for training and for testing."""
    if settings.data != "glyphs":
        changes = {"change_colors": change_colors, "rotate": rotate}
        return cub_resnet50.build_transforms(settings.backbone, settings.image_size, **changes)
    steps = [rotation_augmentation()] * rotate + [color_augmentation()] * change_colors + [quickstart.augment]
    return v2.Compose(steps), None


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
