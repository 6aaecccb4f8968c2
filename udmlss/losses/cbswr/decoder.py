"""Maps of features to the centroids of clusters, and the decoder that makes images of them again."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, value_error

_MOST_STAGES, _FEWEST_CHANNELS = 16, 16


def centroid_maps(maps: Float[Tensor, "b f y x"], clusters: Int[Tensor, " b"]) -> Float[Tensor, "k f y x"]:
    r"""Return the mean map of each cluster: $r_j = \frac{1}{n_j} \sum_{y_i = j} m_i$. Gradients flow to all maps.

    Args:
        maps: The trunk's feature maps, f features at each of y x places.
        clusters: Cluster of each image, any whole numbers.

    Returns:
        One map for each cluster that has an image, in ascending order of `clusters`.

    Raises:
        ValueError: Clusters are not one per map.
        TypeError: Clusters are not whole numbers.

    Example:
        >>> from udmlss.losses import centroid_maps
        >>> centroid_maps(torch.tensor([1.0, 3.0, 8.0]).reshape(3, 1, 1, 1), torch.tensor([5, 5, 7])).flatten()
        tensor([2., 8.])
    """
    as_labels(clusters, len(maps), "clusters")
    ids, members, sizes = clusters.to(maps.device).unique(return_inverse=True, return_counts=True)
    with torch.autocast(maps.device.type, enabled=False):
        rows = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(1)
        shares = functional.one_hot(members, len(ids)).to(rows) / sizes
        means: Tensor = shares.T @ rows
    return means.reshape(-1, *maps.shape[1:]).to(maps.dtype)


class Decoder(nn.Module):
    """Makes images of feature maps: stages of convolution, ReLU and upsampling by 2, and a last convolution.

    Each stage halves the channels, down to 16. The output is linear: images as the network sees them have any range.

    Args:
        map_shape: Shape (f y x) of a feature map.
        image_shape: Shape (c h w) of an image, h and w being y and x times 2 to the number of stages: (1024, 7, 7)
            to (3, 224, 224) takes five.

    Raises:
        ValueError: No number of stages leads from the one shape to the other.

    Example:
        >>> from udmlss.losses import Decoder
        >>> Decoder((128, 8, 8), (3, 32, 32))(torch.randn(2, 128, 8, 8)).shape
        torch.Size([2, 3, 32, 32])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091. The released decoder ends in a sigmoid and is compared with images that
        have negative values. Channels are our choice.
    """

    def __init__(self, map_shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.map_shape = tuple(map_shape)
        layers: list[nn.Module] = []
        channels = map_shape[0]
        for _ in range(_count_stages(map_shape, image_shape)):
            fewer = max(channels // 2, _FEWEST_CHANNELS)
            layers += [nn.Conv2d(channels, fewer, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
            channels = fewer
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, image_shape[0], 3, padding=1))

    def forward(self, maps: Float[Tensor, "k f y x"]) -> Float[Tensor, "k c h w"]:
        """Return the images.

        Raises:
            ValueError: The maps have another shape than the decoder was built for.
        """
        if maps.shape[1:] != self.map_shape:
            raise value_error(
                f"The decoder was built for maps of shape {self.map_shape}",
                tuple(maps.shape[1:]),
                "Build it with Decoder(maps.shape[1:], images.shape[1:])",
            )
        images: Tensor = self.layers(maps)
        return images


def _count_stages(map_shape: tuple[int, ...], image_shape: tuple[int, ...]) -> int:
    _, y, x = map_shape
    for stages in range(_MOST_STAGES):
        if (y << stages, x << stages) == tuple(image_shape[1:]):
            return stages
    raise value_error(
        "The image's sides must be the map's times 2 to the number of stages",
        f"map {tuple(map_shape)} and image {tuple(image_shape)}",
        "Crop the images to such a size, or take the maps elsewhere in the trunk",
    )


def reconstruction_loss(
    decoded: Float[Tensor, "k c h w"], images: Float[Tensor, "b c h w"], clusters: Int[Tensor, " b"]
) -> Float[Tensor, ""]:
    r"""Return the mean squared error of every image against what was decoded of its cluster's centroid.

    $$L = \frac{1}{b c h w} \sum_i \| D(r_{y_i}) - x_i \|^2$$

    The paper (Nguyen et al. 2020, https://arxiv.org/abs/2009.04091) does not divide by the c h w numbers of an image.

    Args:
        decoded: The decoder's image of each cluster.
        images: The images as the network sees them.
        clusters: Cluster of each image, in 0..k-1.

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: The decoder's images have another shape, or clusters are not one per image.
        TypeError: Clusters are not whole numbers.

    Example:
        >>> from udmlss.losses import reconstruction_loss
        >>> reconstruction_loss(torch.zeros(1, 3, 8, 8), torch.ones(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
        tensor(1.)
    """
    as_labels(clusters, len(images), "clusters")
    if decoded.shape[1:] != images.shape[1:]:
        raise value_error(
            "The decoder must give images of the shape of `images`",
            f"{tuple(decoded.shape[1:])} and {tuple(images.shape[1:])}",
            "Build it with Decoder(maps.shape[1:], images.shape[1:])",
        )
    dtype = torch.promote_types(decoded.dtype, torch.float32)
    return functional.mse_loss(decoded.to(dtype)[clusters.to(decoded.device)], images.to(dtype))
