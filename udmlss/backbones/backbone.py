"""A trunk together with the image size and the normalization of its weights."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from udmlss._checks import check_choice, check_integer, check_module, check_number, value_error
from udmlss.backbones.augmentations import color_augmentation, rotation_augmentation
from udmlss.backbones.averaged_views import AveragedViews, GrayImage, RotatedImage, averages_of, describe

Interpolation = Literal["bilinear", "bicubic"]
Transform = Callable[[Any], Tensor]

_CROP_SCALE = (0.16, 1)  # fraction of the area of random crops, as published
_N_CHANNELS = 3


@dataclass(frozen=True)
class Backbone:
    """A trunk with the image size and the normalization of its weights.

    `load_backbone` returns a backbone by name. Create one yourself for a trunk of another library.

    Args:
        name: Name of the backbone, by which `load_model` loads it again, or any other name.
        trunk: Module from images (b, 3, h, w) to features (b, f).
        image_size: Height and width of the images in pixels.
        mean: Mean of the red, green and blue pixels, which lie in 0..1, that is subtracted from the images.
        std: Standard deviation of the red, green and blue pixels by which the images are divided.
        crop_fraction: Fraction of the shorter side of a picture that the test transform retains.
        interpolation: Interpolation of resized pictures.

    Raises:
        TypeError: `trunk` is not a module, or a number has another type.
        ValueError: A number is out of range, `mean` or `std` does not have three numbers, or the interpolation is
            unknown.

    Example:
        >>> from udmlss.backbones import Backbone
        >>> backbone = Backbone("flat", nn.Flatten(), image_size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> backbone.image_size
        32
    """

    name: str
    trunk: nn.Module = field(repr=False)
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float = 227 / 256
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        check_module("trunk", self.trunk)
        check_integer("image_size", self.image_size, 1)
        for name, values, above in (("mean", self.mean, None), ("std", self.std, 0)):
            if len(values) != _N_CHANNELS:
                rule = f"`{name}` must have one number each for red, green and blue"
                raise value_error(rule, f"{len(values)} numbers", "Pass three numbers")
            for value in values:
                check_number(name, value, above=above)
        check_number("crop_fraction", self.crop_fraction, most=1, above=0)
        check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))

    @property
    def min_size(self) -> int:
        """Twice the size in pixels to which pictures are resized, the argument `min_size` of `ImageFiles`."""
        return 2 * self._resized_size

    @property
    def _resized_size(self) -> int:
        return round(self.image_size / self.crop_fraction)

    @property
    def ignores_colors(self) -> bool:
        """Whether the backbone is a result of `without_colors`."""
        return describe(self._gray_views) in averages_of(self.trunk)

    @property
    def ignores_orientation(self) -> bool:
        """Whether the backbone is a result of `without_orientation`."""
        return describe(self._rotated_views) in averages_of(self.trunk)

    @property
    def _gray_views(self) -> list[nn.Module]:
        return [GrayImage(self.mean, self.std, negative=negative) for negative in (False, True)]

    @property
    def _rotated_views(self) -> list[nn.Module]:
        return [RotatedImage(quarter_turns) for quarter_turns in range(4)]

    def without_colors(self) -> "Backbone":
        """Return a backbone whose embeddings ignore the colors of images.

        Use it if the same thing occurs in different colors; `compare_colors` finds out. Its trunk shares the weights of
        this one. In evaluation mode it returns the mean of the features of the gray image and of its negative, which
        takes twice as long, and in training mode the features of the images as they are. The training transform also
        changes the colors of images at random.

        Returns:
            A backbone with another trunk, or this one if it already ignores colors.

        Example:
            >>> backbone = Backbone("flat", nn.Flatten(), image_size=1, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
            >>> trunk = backbone.without_colors().trunk.eval()
            >>> trunk(torch.rand(2, 3, 1, 1)).abs().max() < 1e-5  # a gray level and its negative have a mean of 0.5
            tensor(True)
        """
        return self if self.ignores_colors else replace(self, trunk=AveragedViews(self.trunk, self._gray_views))

    def without_orientation(self) -> "Backbone":
        """Return a backbone whose embeddings ignore rotations of images by multiples of 90 degrees.

        Use it if the same thing occurs in any orientation, as under a microscope or seen from above. Its trunk shares
        the weights of this one. In evaluation mode it returns the mean of the features of an image rotated by 0, 90,
        180 and 270 degrees, which takes four times as long, and in training mode the features of the images as they
        are. The training transform also rotates images by one of these angles at random.

        Returns:
            A backbone with another trunk, or this one if it already ignores orientation.

        Example:
            >>> backbone = Backbone("flat", nn.Flatten(), image_size=2, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
            >>> trunk = backbone.without_orientation().trunk.eval()
            >>> images = torch.rand(5, 3, 2, 2)
            >>> torch.allclose(trunk(images), trunk(images.rot90(1, (2, 3))))
            True
        """
        if self.ignores_orientation:
            return self
        return replace(self, trunk=AveragedViews(self.trunk, self._rotated_views))

    def train_transform(self) -> Transform:
        """Return the transform of training images: a random crop, a random flip, and normalization.

        Crops cover 16 % to 100 % of the area of a picture. If the backbone ignores orientation, a crop is also rotated
        by a multiple of 90 degrees. If it ignores colors, `color_augmentation` changes the colors of a crop.

        Returns:
            A transform from an RGB PIL picture to a float tensor (3, image_size, image_size).
        """
        from torchvision.transforms import v2  # noqa: PLC0415 (`import udmlss` does not import torchvision)

        interpolation = v2.InterpolationMode(self.interpolation)
        crop = v2.RandomResizedCrop(self.image_size, scale=_CROP_SCALE, interpolation=interpolation)
        steps: list[nn.Module] = [crop, v2.RandomHorizontalFlip()]
        if self.ignores_orientation:
            steps.append(rotation_augmentation())
        if self.ignores_colors:
            steps.append(color_augmentation())
        return self._compose(*steps)

    def test_transform(self) -> Transform:
        """Return the transform of images that are embedded: resizing, a center crop, and normalization.

        Returns:
            A transform from an RGB PIL picture to a float tensor (3, image_size, image_size).
        """
        from torchvision.transforms import v2  # noqa: PLC0415 (as above)

        interpolation = v2.InterpolationMode(self.interpolation)
        resize = v2.Resize(self._resized_size, interpolation=interpolation)
        return self._compose(resize, v2.CenterCrop(self.image_size))

    def _compose(self, *steps: nn.Module) -> Transform:
        """Return a transform that converts a picture to a tensor, applies the steps, and normalizes the pixels."""
        from torchvision.transforms import v2  # noqa: PLC0415 (as above)

        # torchvision resizes tensors of 8-bit pixels in half the time that Pillow takes
        to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]
        transform: Transform = v2.Compose([v2.ToImage(), *steps, *to_float])
        return transform
