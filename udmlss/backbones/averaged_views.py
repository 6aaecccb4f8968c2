"""A trunk that averages the features of several views of each image."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_features, check_module, value_error

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a gray image, ITU-R BT.601


class AveragedViews(nn.Module):
    """A trunk that in evaluation mode returns the mean of the features of several views of each image.

    In training mode it returns the features of the images themselves. Such a mean is also known as test-time
    augmentation. The views should be changes that training makes at random, such as a flip. With v views, embedding
    takes v times as long.

    Args:
        trunk: Module from images (b, c, h, w) to features (b, f).
        views: At least one module from images (b, c, h, w) to images of the same shape, which makes the same change
            every time. `nn.Identity()` is the view that changes nothing.

    Raises:
        TypeError: `trunk` or a view is not a module.
        ValueError: There are no views.

    Example:
        >>> from torchvision.transforms import v2
        >>> from udmlss.backbones import AveragedViews
        >>> trunk = AveragedViews(nn.Flatten(), [nn.Identity(), v2.RandomHorizontalFlip(p=1)]).eval()
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

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Return the features, or in evaluation mode their mean over the views."""
        if self.training:
            return as_features(self.trunk(images))
        return torch.stack([as_features(self.trunk(view(images))) for view in self.views]).mean(dim=0)


class GrayImage(nn.Module):
    """A view without colors of normalized images: the gray image, or its negative.

    Args:
        mean: Mean of the red, green and blue pixels, which lie in 0..1, that was subtracted from the images.
        std: Standard deviation by which they were divided.
        negative: Whether to return the negative.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, negative: bool = False) -> None:
        super().__init__()
        means, deviations, luma = (torch.tensor(values, dtype=torch.float64) for values in (mean, std, _LUMA))
        weight, gray = luma * deviations, luma @ means  # of the normalized pixels, and the value where they are 0
        if negative:
            weight, gray = -weight, 1 - gray
        self.register_buffer("weight", (weight / deviations[:, None]).float()[:, :, None, None], persistent=False)
        self.register_buffer("bias", ((gray - means) / deviations).float(), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return three equal channels, normalized as the images are."""
        return functional.conv2d(images, self.weight.to(images), self.bias.to(images))
