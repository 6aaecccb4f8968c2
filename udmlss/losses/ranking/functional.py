"""Similarities of an image to versions of it that grow ever stranger, kept in order."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from udmlss._checks import check_choice, check_number, value_error


def rank_loss(
    similarities: Float[Tensor, "b n"], margin: float, scale: float, *, pairs: Literal["adjacent", "all"] = "adjacent"
) -> Float[Tensor, ""]:
    r"""A stranger version must be less similar to its image, by a margin.

    $$L = \frac{1}{s} \log \Big( 1 + \sum_{(i, j)} e^{s (S_j - S_i + a)} \Big)$$

    where version $j$ is stranger than version $i$; the mean over images.

    Args:
        similarities: Similarity S of each image to its n versions, the least strange one first.
        margin: Margin a, in units of the similarity.
        scale: Scale s: the larger, the more the worst pair alone counts.
        pairs: "adjacent" compares each version with the next one, "all" with every stranger one.

    Returns:
        The loss. Without an image, or with a single version, it is zero and has a gradient.

    Raises:
        ValueError: `similarities` is no matrix, or a number is out of its range.

    Example:
        >>> from udmlss.losses.ranking import rank_loss
        >>> in_order, mixed_up = torch.tensor([[0.9, 0.6, 0.3]]), torch.tensor([[0.3, 0.9, 0.6]])
        >>> bool(rank_loss(in_order, 0.1, 32) < rank_loss(mixed_up, 0.1, 32))
        True

    References:
        Adjacent pairs: Deep Metric Learning with Self-Supervised Ranking. Fu et al. 2021.
        https://doi.org/10.1609/aaai.v35i2.16226.
        All pairs: Deep metric learning assisted by intra-variance in a semi-supervised view of learning. Liu et al.
        2023. https://arxiv.org/abs/2304.10941. The released code adds up two sums that hold the same pairs, so its
        loss is twice this one.
    """
    _check_similarities(similarities)
    check_number("margin", margin, 0)
    check_number("scale", scale, above=0)
    check_choice("pairs", pairs, ("adjacent", "all"))
    rises = similarities.diff(dim=1) if pairs == "adjacent" else _rises_of_all_pairs(similarities)
    return _soft_worst(rises + margin, scale)


def positive_loss(similarities: Float[Tensor, "b n"], boundary: float, scale: float) -> Float[Tensor, ""]:
    r"""No version may be less similar to its image than a boundary.

    $$L = \frac{1}{s} \log \Big( 1 + \sum_n e^{-s (S_n - b)} \Big)$$

    the mean over images.

    Args:
        similarities: Similarity S of each image to its n versions, in any order.
        boundary: Boundary b, in -1..1 as cosines are.
        scale: Scale s: the larger, the more the least similar version alone counts.

    Returns:
        The loss. Without an image or a version it is zero and has a gradient.

    Raises:
        ValueError: `similarities` is no matrix, or a number is out of its range.

    Example:
        >>> from udmlss.losses.ranking import positive_loss
        >>> bool(positive_loss(torch.tensor([[0.9, 0.8]]), boundary=0.5, scale=32) < 1e-4)
        True

    References:
        Deep Metric Learning with Self-Supervised Ranking. Fu et al. 2021. https://doi.org/10.1609/aaai.v35i2.16226
    """
    _check_similarities(similarities)
    check_number("boundary", boundary, -1, 1)
    check_number("scale", scale, above=0)
    return _soft_worst(boundary - similarities, scale)


def draws_on(device: torch.device, draws: torch.Generator) -> torch.Generator:
    """Return a generator on the device, itself drawn from another that may be elsewhere."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=draws)))


def _rises_of_all_pairs(similarities: Float[Tensor, "b n"]) -> Float[Tensor, "b p"]:
    n = similarities.shape[1]
    milder, stranger = torch.triu_indices(n, n, offset=1, device=similarities.device)
    return similarities[:, stranger] - similarities[:, milder]


def _soft_worst(excesses: Float[Tensor, "b m"], scale: float) -> Float[Tensor, ""]:
    """Return the mean of log(1 + sum(exp(scale * excess))) / scale, a soft maximum of zero and an image's excesses."""
    with_zero = functional.pad(scale * excesses, (1, 0))
    return with_zero.logsumexp(dim=1).sum() / (scale * max(1, len(excesses)))


def _check_similarities(similarities: Tensor) -> None:
    if similarities.ndim != 2:  # noqa: PLR2004
        raise value_error(
            "`similarities` must be a matrix (b n), a row per image",
            f"shape {tuple(similarities.shape)}",
            "Give each image one similarity per version",
        )
