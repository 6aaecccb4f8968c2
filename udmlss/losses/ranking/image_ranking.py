"""Ranking loss of increasingly distorted views of an image."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_features, check_integer, check_number, value_error
from udmlss._torch import at_least_float32, to_dtype, trunk_of
from udmlss.losses.ranking.functional import generator_on, positive_loss, rank_loss, seeded_generator, set_default_seed

_MIN_VIEWS, _MAX_VIEWS = 2, 4  # one view has no order, and each view costs a forward pass through the trunk
# The distortion at strength 1. Brightness and noise are in units of the image's standard deviation.
_SIDE, _CONTRAST, _BRIGHTNESS, _NOISE = 0.5, 0.5, 0.5, 0.2


class SelfSupervisedRanking(nn.Module):
    r"""Ranking loss of distorted views, which become less similar to their image as the distortion grows.

    $$L = w \, (L_{rank} + \lambda \, L_{positive})$$

    Each view is cropped more closely than the previous one, and differs more in contrast, brightness and noise. A
    projection head (Linear, ReLU, Linear) maps the trunk's features of the image and of its views, and $S_n$ is the
    cosine similarity of the projections of the image and of its n-th view. `rank_loss` is low if $S_n$ decreases from
    view to view, and `positive_loss` is low if no $S_n$ is below the boundary. The loss needs no labels, so it can be
    added to any metric loss.

    Args:
        in_features: Dimension f of the trunk's features.
        hidden: Width of the hidden layer.
        out_features: Dimension of the projections.
        strengths: Strength of the distortion of each view, 2 to 4 increasing numbers above 0 and at most 1. At
            strength 1 a crop has half the side lengths, contrast changes by at most half, brightness changes by at most
            half the image's standard deviation, and the standard deviation of the noise is a fifth of the image's.
        margin: Margin a of cosine similarities between consecutive views, at least 0.
        boundary: Boundary b of cosine similarities, in -1..1. `boundary` plus the sum of all margins should be below 1.
        scale: Scale s of both losses, above 0.
        positive_weight: Weight lambda of `positive_loss`, at least 0.
        weight: Weight w of the whole loss, at least 0.
        max_images: Maximum number of images per batch, which are sampled at random. The trunk receives each of them and
            all its views.
        probability: Probability in 0..1 that a call computes the loss. Other calls return zero, which saves time.
        seed: Seed of the sampled images, crops and directions of change, at least 0. None uses the seed of `fit`, or 0.

    Raises:
        ValueError: A setting is out of its range, or `strengths` do not increase.

    Example:
        >>> from udmlss.losses import SelfSupervisedRanking
        >>> model, ranking = EmbeddingModel(nn.Flatten(), nn.Linear(192, 16)), SelfSupervisedRanking(192)
        >>> ranking(model, torch.rand(20, 3, 8, 8)).shape
        torch.Size([])

    References:
        Deep Metric Learning with Self-Supervised Ranking. Fu et al. 2021. https://doi.org/10.1609/aaai.v35i2.16226.
        The paper distorts by crop, perspective and color jitter. Its values of s, a, b, lambda and the strengths were
        not found, so the defaults are those of this library. It also differs from the paper in that all views of an
        image are distorted in the same direction: each crop lies inside the previous one, and contrast, brightness and
        noise change in proportion to the strength.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 512,
        out_features: int = 128,
        *,
        strengths: Sequence[float] = (0.25, 0.5, 0.75),
        margin: float = 0.1,
        boundary: float = 0.5,
        scale: float = 32.0,
        positive_weight: float = 1.0,
        weight: float = 1.0,
        max_images: int = 16,
        probability: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("hidden", hidden), ("out_features", out_features)):
            check_integer(name, size, 1)
        _check_strengths(strengths)
        for name, value in (("margin", margin), ("positive_weight", positive_weight), ("weight", weight)):
            check_number(name, value, 0)
        check_number("boundary", boundary, -1, 1)
        check_number("scale", scale, above=0)
        check_integer("max_images", max_images, 1)
        check_number("probability", probability, 0, 1)
        self.strengths = tuple(map(float, strengths))
        self.margin, self.boundary, self.scale = float(margin), float(boundary), float(scale)
        self.positive_weight, self.weight = float(positive_weight), float(weight)
        self.max_images, self.probability = int(max_images), float(probability)
        self.in_features, hidden, out_features = int(in_features), int(hidden), int(out_features)
        self.layers = nn.Sequential(nn.Linear(self.in_features, hidden), nn.ReLU(), nn.Linear(hidden, out_features))
        self.seed, self.generator = seed, seeded_generator(seed)

    def set_default_seed(self, seed: int) -> None:
        """Set the seed that is used if `seed` is None."""
        if self.seed is None:
            set_default_seed(self.generator, seed)

    def forward(self, model: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Compute the weighted loss of a random part of the batch.

        Args:
            model: An `EmbeddingModel`, of which only the trunk is used.
            images: Images (b, c, h, w) on the device of the model.

        Raises:
            ValueError: The trunk does not return features of shape (b, f).
        """
        if torch.rand((), generator=self.generator) >= self.probability:
            return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0
        generator = generator_on(images.device, self.generator)
        sampled = images[torch.randperm(len(images), generator=generator, device=images.device)[: self.max_images]]
        similarities = self._similarities(model, sampled, distort(sampled, self.strengths, generator))
        ranking = rank_loss(similarities, self.margin, self.scale)
        return self.weight * (ranking + self.positive_weight * positive_loss(similarities, self.boundary, self.scale))

    def _similarities(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], views: Float[Tensor, "n b c h w"]
    ) -> Float[Tensor, "b n"]:
        batch = torch.cat([images, *views])
        if images.is_contiguous(memory_format=torch.channels_last):
            batch = batch.contiguous(memory_format=torch.channels_last)
        features = as_features(trunk_of(model)(batch))
        projections = self.layers(to_dtype(features, self)).unflatten(0, (-1, len(images)))
        projections = at_least_float32(projections)
        return functional.cosine_similarity(projections[1:], projections[:1], dim=2).T


def distort(
    images: Float[Tensor, "b c h w"], strengths: Sequence[float], generator: torch.Generator
) -> Float[Tensor, "n b c h w"]:
    """Distort each image once per strength, always with the same crop position, change of color and noise.

    Args:
        images: Floating-point images (b, c, h, w) of any mean and standard deviation.
        strengths: Strengths of the distortion, in 0..1; 0 returns the image itself.
        generator: Generator of the crop positions, changes of color and noise, on the device of the images.

    Returns:
        Views (n, b, c, h, w) in the order of the strengths.

    Raises:
        ValueError: A strength is not in 0..1.

    Example:
        >>> from udmlss.losses.ranking import distort
        >>> distort(torch.rand(2, 3, 8, 8), (0.2, 0.8), torch.Generator()).shape
        torch.Size([2, 2, 3, 8, 8])
    """
    for strength in strengths:
        check_number("strengths", strength, 0, 1)
    with torch.autocast(images.device.type, enabled=False):  # half precision would move the pixels
        return _distort(images, strengths, generator)


def _distort(
    images: Float[Tensor, "b c h w"], strengths: Sequence[float], generator: torch.Generator
) -> Float[Tensor, "n b c h w"]:
    positions, colors = (_uniform((len(images), 2), images, generator) for _ in range(2))
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), correction=0, keepdim=True)
    contrast, brightness = (color.view(-1, 1, 1, 1) for color in colors.unbind(1))
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    change = deviation * (_BRIGHTNESS * brightness + _NOISE * noise)
    views = []
    for strength in strengths:
        cropped = _crop(images, 1 - strength * (1 - _SIDE), positions)
        views.append(cropped + strength * (_CONTRAST * contrast * (cropped - mean) + change))
    return torch.stack(views)


def _crop(images: Float[Tensor, "b c h w"], side: float, positions: Float[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Crop a fraction of both sides, at positions in -1..1 between opposite edges, and resize to the original size."""
    scaling = (side * torch.eye(2).to(images)).expand(len(images), 2, 2)
    window = torch.cat([scaling, (1 - side) * positions.unsqueeze(2)], dim=2)
    grid = functional.affine_grid(window, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Sample uniformly from -1..1."""
    return 2 * torch.rand(shape, generator=generator, device=images.device, dtype=images.dtype) - 1


def _check_strengths(strengths: Sequence[float]) -> None:
    for strength in strengths:
        check_number("strengths", strength)
    increasing = all(weaker < stronger for weaker, stronger in pairwise([0, *strengths]))
    if not (_MIN_VIEWS <= len(strengths) <= _MAX_VIEWS and increasing and strengths[-1] <= 1):
        rule = f"`strengths` must be {_MIN_VIEWS} to {_MAX_VIEWS} increasing numbers above 0 and at most 1"
        raise value_error(rule, tuple(strengths), "Pass (0.25, 0.5, 0.75), for example")
