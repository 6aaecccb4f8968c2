"""A trunk that averages the features of several views of each image, and such views."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from udmlss._checks import as_features, check_integer, check_module, value_error
from udmlss._torch import at_least_float32

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a gray image, ITU-R BT.601


class AveragedViews(nn.Module):
    """A trunk that in evaluation mode returns the mean of the features of several views of each image.

    In training mode it returns the features of the images themselves. This is also known as test-time augmentation.
    Choose views that also occur among the augmentations of the training. With v views, embedding takes v times as long.

    Args:
        trunk: Module from images (b, c, h, w) to features (b, f). The new trunk is in the same mode.
        views: At least one module from images (b, c, h, w) to images that the trunk accepts, such as `MirrorImage()`.
            `nn.Identity()` is the view that changes nothing.

    Raises:
        TypeError: `trunk` or a view is not a module.
        ValueError: `views` is empty.

    Example:
        >>> from udmlss.backbones import AveragedViews, MirrorImage
        >>> trunk = AveragedViews(nn.Flatten(), [nn.Identity(), MirrorImage()]).eval()
        >>> trunk(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, trunk: nn.Module, views: Sequence[nn.Module]) -> None:
        super().__init__()
        check_module("trunk", trunk)
        if not views:
            remedy = "Pass [nn.Identity()] for the image itself"
            raise value_error("`views` must have at least one view", "none", remedy)
        for view in views:
            check_module("views", view)
        self.trunk, self.views = trunk, nn.ModuleList(views)
        self.training = trunk.training

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Return the features, or in evaluation mode their mean over the views."""
        if self.training:
            return as_features(self.trunk(images))
        return torch.stack([as_features(self.trunk(view(images))) for view in self.views]).mean(dim=0)


def averages_of(trunk: nn.Module) -> list[str]:
    """Describe the views that a trunk averages, and those that trunks within it average, in alphabetical order."""
    trunk = getattr(trunk, "_orig_mod", trunk)  # of a compiled trunk
    return sorted([describe(trunk.views), *averages_of(trunk.trunk)]) if isinstance(trunk, AveragedViews) else []


def count_views(trunk: nn.Module) -> int:
    """Return the number of views of each image that a trunk embeds in evaluation mode."""
    trunk = getattr(trunk, "_orig_mod", trunk)  # of a compiled trunk
    return len(trunk.views) * count_views(trunk.trunk) if isinstance(trunk, AveragedViews) else 1


def describe(views: Iterable[nn.Module]) -> str:
    """Describe views in one line."""
    return ", ".join(map(repr, views))


class MirrorImage(nn.Module):
    """A view that is flipped horizontally.

    Example:
        >>> from udmlss.backbones import MirrorImage
        >>> MirrorImage()(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[1., 0.]]]])
    """

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mirror images."""
        return images.flip(-1)


class RotatedImage(nn.Module):
    """A view that is rotated counterclockwise by a multiple of 90 degrees.

    Args:
        quarter_turns: Number of rotations by 90 degrees, in 0..3.

    Raises:
        TypeError: `quarter_turns` is not an integer.
        ValueError: `quarter_turns` is out of range.

    Example:
        >>> from udmlss.backbones import RotatedImage
        >>> RotatedImage(1)(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))
        tensor([[[[1., 3.],
                  [0., 2.]]]])
    """

    def __init__(self, quarter_turns: int) -> None:
        super().__init__()
        check_integer("quarter_turns", quarter_turns, 0, 3)
        self.quarter_turns = int(quarter_turns)

    def extra_repr(self) -> str:
        """Return the argument of the constructor, for `repr`."""
        return f"{self.quarter_turns}"

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Return the rotated images. Height and width change places if the number of quarter turns is odd."""
        return images.rot90(self.quarter_turns, (2, 3))


class GrayImage(nn.Module):
    """A view of normalized images without their colors: the gray image, or its negative.

    Args:
        mean: Mean of the red, green and blue pixels, which lie in 0..1, that was subtracted from the images.
        std: Standard deviation by which they were divided.
        negative: Whether to return the negative.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, negative: bool = False) -> None:
        super().__init__()
        self.mean, self.std = (tuple(map(float, each)) for each in (mean, std))
        self.negative = negative

    def extra_repr(self) -> str:
        """Return the arguments of the constructor, for `repr`."""
        return f"{self.mean}, {self.std}, negative={self.negative}"

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return three equal channels, normalized as the images are."""
        channels = zip(_LUMA, at_least_float32(images).unbind(dim=1), self.mean, self.std, strict=True)
        red, green, blue = (luma * (channel * std + mean) for luma, channel, mean, std in channels)
        gray = red + green + blue
        if self.negative:
            gray = 1 - gray
        normalized = [(gray - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return torch.stack(normalized, dim=1).to(images.dtype)
