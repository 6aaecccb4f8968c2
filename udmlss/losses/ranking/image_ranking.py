"""Ranking in image space: the more an image is distorted, the less similar it may be to itself."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_features, check_integer, check_number, value_error
from udmlss.losses.ranking.functional import draws_on, positive_loss, rank_loss

_FEWEST_VERSIONS, _MOST_VERSIONS = 2, 4  # a single one has no order, and each costs a pass through the trunk
# What strength 1 does to an image; brightness and noise in units of the image's standard deviation.
_SIDE, _CONTRAST, _BRIGHTNESS, _NOISE = 0.5, 0.5, 0.5, 0.2


class SelfSupervisedRanking(nn.Module):
    r"""Keeps versions of an image, distorted ever more strongly, in their order of similarity.

    $$L = w \, (L_{rank} + \lambda \, L_{positive})$$

    Each version is cropped more closely, and changed more in contrast, brightness and noise, than the one before. A
    head of its own, Linear, ReLU, Linear, reads the trunk's features of the image and of its versions, and $S_n$ is
    the cosine of what it makes of the image and of the n-th version. `rank_loss` wants $S_n$ to fall from version to
    version, `positive_loss` wants none below the boundary. It needs no label, so it goes beside any metric loss.

    Args:
        in_features: Dimension f of the trunk's features.
        hidden: Width of the hidden layer.
        dimensions: Dimension of what the head gives.
        strengths: How strong the distortion of each version is: 2 to 4 growing numbers above 0 and up to 1. At 1 a
            crop has half the sides, contrast changes by up to half, brightness by up to half the image's standard
            deviation, and noise has a fifth of it.
        margin: Margin a by which the cosine must fall from one version to the next.
        boundary: Boundary b below which no cosine may fall. `boundary` and all margins together should stay below 1.
        scale: Scale s of both losses.
        positive_weight: Weight lambda of the second loss.
        weight: Weight w of the whole beside the metric loss.
        images: At most so many images of the batch are taken, drawn at random; each goes through the trunk once
            more, and once for each version.
        probability: Share of the calls that do something; the others return zero, which saves time.
        seed: Seed of what is drawn: images, crops, and the directions of all changes.

    Raises:
        ValueError: A number out of its range, or strengths that do not grow.

    Example:
        >>> from udmlss.losses import SelfSupervisedRanking
        >>> model, ranking = EmbeddingModel(nn.Flatten(), nn.Linear(192, 16)), SelfSupervisedRanking(192)
        >>> ranking(model, torch.rand(20, 3, 8, 8)).shape
        torch.Size([])

    References:
        Deep Metric Learning with Self-Supervised Ranking. Fu et al. 2021. https://doi.org/10.1609/aaai.v35i2.16226.
        It distorts by crop, perspective and colour jitter; we found no values of its s, a, b, lambda and strengths,
        so the defaults are ours. So is that all versions of an image are distorted in one direction: each crop lies
        inside the one before, and contrast, brightness and noise go further the same way.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 512,
        dimensions: int = 128,
        *,
        strengths: Sequence[float] = (0.25, 0.5, 0.75),
        margin: float = 0.1,
        boundary: float = 0.5,
        scale: float = 32.0,
        positive_weight: float = 1.0,
        weight: float = 1.0,
        images: int = 16,
        probability: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("hidden", hidden), ("dimensions", dimensions)):
            check_integer(name, size, 1)
        _check_strengths(strengths)
        for name, value in (("margin", margin), ("positive_weight", positive_weight), ("weight", weight)):
            check_number(name, value, 0)
        check_number("boundary", boundary, -1, 1)
        check_number("scale", scale, above=0)
        check_integer("images", images, 1)
        check_number("probability", probability, 0, 1)
        self.in_features = in_features
        self.strengths = tuple(strengths)
        self.margin, self.boundary, self.scale = margin, boundary, scale
        self.positive_weight, self.weight = positive_weight, weight
        self.images, self.probability = images, probability
        self.layers = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, dimensions))
        self.draws = torch.Generator().manual_seed(seed)

    def forward(self, model: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Return the weighted loss of some images of the batch.

        Args:
            model: An `EmbeddingModel`; only its trunk is used.
            images: The batch, on the device of model and head.

        Raises:
            ValueError: The trunk's features are no matrix (b f).
        """
        if torch.rand((), generator=self.draws) >= self.probability:
            return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0
        draws = draws_on(images.device, self.draws)
        chosen = images[torch.randperm(len(images), generator=draws, device=images.device)[: self.images]]
        similarities = self._similarities(model, chosen, distort(chosen, self.strengths, draws))
        ranking = rank_loss(similarities, self.margin, self.scale)
        return self.weight * (ranking + self.positive_weight * positive_loss(similarities, self.boundary, self.scale))

    def _similarities(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], versions: Float[Tensor, "n b c h w"]
    ) -> Float[Tensor, "b n"]:
        batch = torch.cat([images, *versions])
        if images.is_contiguous(memory_format=torch.channels_last):
            batch = batch.contiguous(memory_format=torch.channels_last)
        features = model.get_submodule("trunk")(batch)
        check_features(features)
        projected = self.layers(features).unflatten(0, (-1, len(images)))
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return functional.cosine_similarity(projected[1:], projected[:1], dim=2).T


def distort(
    images: Float[Tensor, "b c h w"], strengths: Sequence[float], draws: torch.Generator
) -> Float[Tensor, "n b c h w"]:
    """Return a version of each image for each strength, each image in one direction of crop, colour and noise.

    Args:
        images: Floating-point images of any mean and deviation.
        strengths: How far to go in the direction, in 0..1; 0 changes nothing.
        draws: Generator of the directions, on the device of the images.

    Returns:
        The versions in the order of the strengths, of the same size as the images.

    Example:
        >>> from udmlss.losses.self_supervised_ranking import distort
        >>> distort(torch.rand(2, 3, 8, 8), (0.2, 0.8), torch.Generator()).shape
        torch.Size([2, 2, 3, 8, 8])
    """
    centres, colours = (_uniform((len(images), 2), images, draws) for _ in range(2))
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), correction=0, keepdim=True)
    contrast, brightness = (colour.view(-1, 1, 1, 1) for colour in colours.unbind(1))
    noise = torch.randn(images.shape, generator=draws, device=images.device, dtype=images.dtype)
    change = deviation * (_BRIGHTNESS * brightness + _NOISE * noise)
    versions = []
    for strength in strengths:
        cropped = _crop(images, 1 - strength * (1 - _SIDE), centres)
        versions.append(cropped + strength * (_CONTRAST * contrast * (cropped - mean) + change))
    return torch.stack(versions)


def _crop(images: Float[Tensor, "b c h w"], side: float, centres: Float[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Cut out a share of the sides, as far towards the edges as the centres in -1..1 say, and enlarge it."""
    scaling = (side * torch.eye(2).to(images)).expand(len(images), 2, 2)
    window = torch.cat([scaling, (1 - side) * centres.unsqueeze(2)], dim=2)
    grid = functional.affine_grid(window, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(shape: tuple[int, ...], images: Tensor, draws: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=draws, device=images.device, dtype=images.dtype) - 1


def _check_strengths(strengths: Sequence[float]) -> None:
    grow = all(milder < stronger for milder, stronger in pairwise([0, *strengths]))
    if not (_FEWEST_VERSIONS <= len(strengths) <= _MOST_VERSIONS and grow and strengths[-1] <= 1):
        raise value_error(
            f"`strengths` must be {_FEWEST_VERSIONS} to {_MOST_VERSIONS} growing numbers above 0 and up to 1",
            tuple(strengths),
            "Pass (0.25, 0.5, 0.75), for example",
        )
