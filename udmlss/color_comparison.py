"""Find without labels whether colors distinguish the things in images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.utils.data import Subset

from udmlss._checks import as_features, check_integer, value_error
from udmlss.backbones import Backbone
from udmlss.dataset import IndexedImages
from udmlss.inference import InferenceOptions, embed
from udmlss.models import EmbeddingModel, embedder_from_features
from udmlss.neighbors import neighbor_lists
from udmlss.types import Images, Precision

_N_NEIGHBORS = 20
_N_NEAREST = 3  # with fewer, the fraction varies more between samples of the images
_STANDARD_ERRORS = 2
_EMBEDDING_SIZE = 512
_ROUNDING = 1e-2  # of features in any precision, as a fraction of their length
_FEWEST = 4  # images, so that there are two neighbors
_GRAY = 0.02  # largest saturation of gray images, whose colors may differ a little after compression


@dataclass(frozen=True)
class ColorComparison:
    """The result of `compare_colors`.

    Attributes:
        with_colors: Mean fraction of neighbors that an image has in common with each of its three nearest neighbors.
        without_colors: The same fraction for images without colors: for the mean of the features of the gray image and
            of its negative.
        standard_error: Standard error of the difference between the two, as if the fractions of images were
            independent.
        saturation: Mean difference between the largest and the smallest of red, green and blue, which lie in 0..1.
    """

    with_colors: float
    without_colors: float
    standard_error: float
    saturation: float

    @property
    def are_gray(self) -> bool:
        """Whether the images are gray: the saturation is below 0.02."""
        return self.saturation < _GRAY

    @property
    def ignore_colors(self) -> bool:
        """True if images are not gray and `without_colors` exceeds `with_colors` by more than two standard errors."""
        return not self.are_gray and self.without_colors - self.with_colors > _STANDARD_ERRORS * self.standard_error


def compare_colors(
    backbone: Backbone,
    images: Images,
    *,
    max_images: int = 2000,
    batch_size: int = 128,
    num_workers: int | None = None,
    precision: Precision = "float32",
    seed: int = 0,
    progress: bool = True,
) -> ColorComparison:
    """Find without labels whether the colors of images should be ignored.

    If two images show the same thing, they tend to have the same neighbors. Images are therefore embedded by a
    pretrained backbone with and without colors, and the fractions of neighbors that an image has in common with its
    three nearest neighbors are compared. If the fraction is larger without colors, the same thing occurs in different
    colors, as a logo does: use `backbone.without_colors()`. If it is smaller, colors distinguish things, as they
    distinguish species of birds.

    The features without colors are those of `backbone.without_colors()`: the mean of the features of the gray image
    and of its negative. The embeddings are those of `embedder_from_features`. An image has 20 neighbors, or half the
    number of images if there are fewer than 40. Fewer than 4 images are not compared: the fractions are 0, the
    saturation is NaN, and `ignore_colors` is False. It is also False if the images are gray.

    Args:
        backbone: A pretrained backbone that does not ignore colors.
        images: Images with the backbone's test transform: any dataset that `embed` accepts.
        max_images: Number of images that are compared, chosen at random if there are more. If few of the chosen images
            show the same thing, pass a larger number.
        batch_size: Number of images per forward pass.
        num_workers: As for `embed`.
        precision: "bfloat16" and "float16" embed in mixed precision.
        seed: Seed of the choice of the images.
        progress: Whether to show a progress bar.

    Returns:
        The fractions, and whether to ignore colors.

    Raises:
        ValueError: `images` is empty, its features are not finite, the backbone ignores colors, or a setting is out of
            range.
        TypeError: `images` is not a map-style dataset, or the trunk does not return a tensor.

    Example:
        >>> from udmlss.backbones import Backbone
        >>> backbone = Backbone("flat", nn.Flatten(), image_size=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> gray_images = torch.randn(40, 1, 8, 8).expand(40, 3, 8, 8)
        >>> compare_colors(backbone, gray_images, progress=False).ignore_colors
        False

    References:
        Clustering Using a Similarity Measure Based on Shared Near Neighbors. Jarvis, Patrick. 1973.
        https://doi.org/10.1109/T-C.1973.223640. It introduced the number of common neighbors as a similarity.
    """
    check_integer("max_images", max_images, _FEWEST)
    check_integer("seed", seed, 0)
    InferenceOptions(num_workers, precision, batch_size)  # checks the settings
    if backbone.ignores_colors:
        rule, found = "`backbone` must not ignore colors", "the result of `without_colors`"
        raise value_error(rule, found, "Pass the backbone on which it was called")
    dataset = IndexedImages(images)
    if len(dataset) < _FEWEST:
        return ColorComparison(0.0, 0.0, 0.0, math.nan)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_images]
    trunks = _Trunks(backbone.trunk, backbone.without_colors().trunk, _Saturation(backbone.mean, backbone.std))
    features = embed(
        EmbeddingModel(trunks, nn.Identity()),
        images[chosen] if isinstance(images, Tensor) else Subset(dataset, chosen.tolist()),
        output="features",
        batch_size=batch_size,
        num_workers=num_workers,
        precision=precision,
        progress=progress,
    )
    features, saturation = features[:, :-1], features[:, -1]
    with_colors, without_colors = (_common_neighbors(each) for each in features.chunk(2, dim=1))
    difference = without_colors - with_colors
    standard_error = difference.std() / len(difference) ** 0.5
    means = (each.mean() for each in (with_colors, without_colors, standard_error, saturation))
    return ColorComparison(*map(float, means))


class _Trunks(nn.Module):
    """A trunk that returns the features of several trunks, one after the other."""

    def __init__(self, *trunks: nn.Module) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b g"]:
        return torch.cat([as_features(trunk(images)) for trunk in self.trunks], dim=1)


class _Saturation(nn.Module):
    """Returns the mean difference between the largest and the smallest of red, green and blue of normalized images."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1"]:
        mean, std = (images.new_tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        pixels = images * std + mean
        return (pixels.amax(dim=1) - pixels.amin(dim=1)).mean(dim=(1, 2)).unsqueeze(1)


def _common_neighbors(features: Float[Tensor, "n f"]) -> Float32[Tensor, " n"]:
    """Return the fraction of neighbors that each image has in common with its nearest neighbors, as a mean over these.

    It is 0 if the features differ by rounding only, so that neighbors mean nothing.
    """
    n, size = features.shape
    if (features - features.mean(dim=0)).norm() < _ROUNDING * features.norm():
        return torch.zeros(n)
    embedder = embedder_from_features(features, min(_EMBEDDING_SIZE, size))
    neighbors = neighbor_lists(embedder(features).detach(), min(_N_NEIGHBORS, n // 2)).indices
    nearest = neighbors[:, :_N_NEAREST].T
    common = torch.stack([(neighbors.unsqueeze(2) == neighbors[each].unsqueeze(1)).any(dim=2) for each in nearest])
    return common.sum(dim=2).float().mean(dim=0) / (neighbors.shape[1] - 1)  # neither image is a neighbor of itself
