"""Mean feature maps of clusters, and the decoder that reconstructs images from them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_integer, value_error
from udmlss._torch import at_least_float32
from udmlss.types import Labels

_MAX_STAGES, _MIN_CHANNELS = 16, 16
_REMEDY = "Build it with Decoder(maps.shape[1:], images.shape[1:])"


def center_maps(maps: Float[Tensor, "b f y x"], clusters: Labels) -> Float[Tensor, "k f y x"]:
    r"""Compute the mean feature map of each cluster: $r_j = \frac{1}{n_j} \sum_{y_i = j} m_i$.

    Args:
        maps: Feature maps (b, f, y, x) of the trunk.
        clusters: Cluster of each image, any integers.

    Returns:
        One map for each cluster with images, in ascending order of `clusters`. The gradient flows to all feature maps.

    Raises:
        TypeError: The clusters are not integers.
        ValueError: The clusters are not one per map.

    Example:
        >>> from udmlss.losses import center_maps
        >>> center_maps(torch.tensor([1.0, 3.0, 8.0]).reshape(3, 1, 1, 1), [5, 5, 7]).flatten()
        tensor([2., 8.])
    """
    clusters = as_labels(clusters, len(maps), "clusters")
    ids, members, sizes = clusters.to(maps.device).unique(return_inverse=True, return_counts=True)
    with torch.autocast(maps.device.type, enabled=False):
        rows = at_least_float32(maps).flatten(1)
        weights = functional.one_hot(members, len(ids)).to(rows) / sizes
        means: Tensor = weights.T @ rows
    return means.reshape(-1, *maps.shape[1:]).to(maps.dtype)


class Decoder(nn.Module):
    """Decoder of feature maps to images: stages of convolution, ReLU and upsampling by 2, and a final convolution.

    Each stage halves the number of channels, down to 16. The output is linear, because normalized images may have any
    range.

    Args:
        map_shape: Shape (f, y, x) of a feature map.
        image_shape: Shape (c, h, w) of an image. The factors h / y and w / x must be the same power of 2, whose
            exponent is the number of stages: (1024, 7, 7) to (3, 224, 224) needs five.

    Raises:
        ValueError: The shapes are not three positive numbers each, or the factors are not the same power of 2.

    Example:
        >>> from udmlss.losses import Decoder
        >>> Decoder((128, 8, 8), (3, 32, 32))(torch.randn(2, 128, 8, 8)).shape
        torch.Size([2, 3, 32, 32])

    References:
        The paper of `CBSwRLoss` (https://arxiv.org/abs/2009.04091). The released decoder ends in a sigmoid, although
        its targets have negative values. The numbers of channels are those of this library.
    """

    def __init__(self, map_shape: Sequence[int], image_shape: Sequence[int]) -> None:
        super().__init__()
        _check_shape("map_shape", map_shape)
        _check_shape("image_shape", image_shape)
        self.map_shape = tuple(map(int, map_shape))
        layers: list[nn.Module] = []
        channels = self.map_shape[0]
        for _ in range(_n_stages(self.map_shape, tuple(map(int, image_shape)))):
            halved = max(channels // 2, _MIN_CHANNELS)
            layers += [nn.Conv2d(channels, halved, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
            channels = halved
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, int(image_shape[0]), 3, padding=1))

    def forward(self, maps: Float[Tensor, "k f y x"]) -> Float[Tensor, "k c h w"]:
        """Return the decoded images (k, c, h, w).

        Raises:
            ValueError: The maps are not of shape `map_shape`.
        """
        if maps.shape[1:] != self.map_shape:
            rule = f"The decoder was built for maps of shape {self.map_shape}"
            raise value_error(rule, tuple(maps.shape[1:]), _REMEDY)
        images: Tensor = self.layers(maps)
        return images


def reconstruction_loss(
    decoded: Float[Tensor, "k c h w"], images: Float[Tensor, "b c h w"], clusters: Labels
) -> Float[Tensor, ""]:
    r"""Compute the mean squared error of every image and the image decoded from its cluster's center.

    $$L = \frac{1}{b c h w} \sum_i \| D(r_{y_i}) - x_i \|^2$$

    The paper of `CBSwRLoss` does not divide by the c h w numbers of an image.

    Args:
        decoded: Decoded image (k, c, h, w) of each cluster.
        images: Images (b, c, h, w) as the model receives them.
        clusters: Cluster of each image, in 0..k-1.

    Returns:
        The loss, in float32, or in float64 if `decoded` is float64.

    Raises:
        TypeError: The clusters are not integers.
        ValueError: The shapes of decoded and original images differ, the clusters are not one per image, or a cluster
            does not have a decoded image.

    Example:
        >>> from udmlss.losses import reconstruction_loss
        >>> reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.ones(4, 3, 8, 8), [0, 0, 0, 0])
        tensor(1.)
    """
    clusters = as_labels(clusters, len(images), "clusters")
    if decoded.shape[1:] != images.shape[1:]:
        found = f"{tuple(decoded.shape[1:])} and {tuple(images.shape[1:])}"
        raise value_error("The decoder must return images of the shape of `images`", found, _REMEDY)
    if not ((clusters >= 0) & (clusters < len(decoded))).all():
        rule, found = f"`clusters` must lie in 0..{len(decoded) - 1}", f"{int(clusters.min())} to {int(clusters.max())}"
        raise value_error(rule, found, "Number them without gaps: `clusters.unique(return_inverse=True)[1]`")
    decoded = at_least_float32(decoded)
    return functional.mse_loss(decoded[clusters.to(decoded.device)], images.to(decoded.dtype))


def _check_shape(name: str, shape: Sequence[int]) -> None:
    if len(shape) != 3:  # noqa: PLR2004
        rule, remedy = f"`{name}` must have three numbers", "Pass the shape of one item, as x.shape[1:]"
        raise value_error(rule, tuple(shape), remedy)
    for size in shape:
        check_integer(name, size, 1)


def _n_stages(map_shape: tuple[int, ...], image_shape: tuple[int, ...]) -> int:
    _, y, x = map_shape
    for stages in range(_MAX_STAGES):
        if (y << stages, x << stages) == image_shape[1:]:
            return stages
    raise value_error(
        "The sides of images must be those of feature maps times the same power of 2",
        f"map {map_shape} and image {image_shape}",
        "Crop the images to such a size, or use feature maps of another layer",
    )
