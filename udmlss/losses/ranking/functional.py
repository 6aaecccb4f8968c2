"""Losses of the similarities between an anchor and views of it in order of increasing distortion."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from udmlss._checks import check_choice, check_integer, check_number, value_error


def rank_loss(
    similarities: Float[Tensor, "b n"], margin: float, scale: float, *, pairs: Literal["adjacent", "all"] = "adjacent"
) -> Float[Tensor, ""]:
    r"""Compute a loss that is low if the similarities decrease from view to view by a margin.

    $$L = \frac{1}{s} \log \Big( 1 + \sum_{(i, j)} e^{s (S_j - S_i + a)} \Big)$$

    where view $j$ is more distorted than view $i$. The result is the mean over anchors.

    Args:
        similarities: Similarity S of each anchor to its n views (b, n), in order of increasing distortion.
        margin: Margin a of similarities, at least 0.
        scale: Scale s, above 0. The larger it is, the closer the loss is to that of the worst pair alone.
        pairs: "adjacent" compares each view with the next one, "all" compares it with all more distorted views.

    Returns:
        The loss. Without anchors, or with a single view, it is zero and has a gradient.

    Raises:
        ValueError: `similarities` is not a 2-D tensor, or a setting is out of its range.

    Example:
        >>> from udmlss.losses.ranking import rank_loss
        >>> ordered, unordered = torch.tensor([[0.9, 0.6, 0.3]]), torch.tensor([[0.3, 0.9, 0.6]])
        >>> bool(rank_loss(ordered, 0.1, 32) < rank_loss(unordered, 0.1, 32))
        True

    References:
        Adjacent pairs: Deep Metric Learning with Self-Supervised Ranking. Fu et al. 2021.
        https://doi.org/10.1609/aaai.v35i2.16226.
        All pairs: Deep metric learning assisted by intra-variance in a semi-supervised view of learning. Liu et al.
        2023. https://arxiv.org/abs/2304.10941. The released code adds two sums over the same pairs, which doubles the
        loss.
    """
    _check_similarities(similarities)
    check_number("margin", margin, 0)
    check_number("scale", scale, above=0)
    check_choice("pairs", pairs, ("adjacent", "all"))
    increases = similarities.diff(dim=1) if pairs == "adjacent" else _increases_of_all_pairs(similarities)
    return _soft_maximum(increases + float(margin), float(scale))


def positive_loss(similarities: Float[Tensor, "b n"], boundary: float, scale: float) -> Float[Tensor, ""]:
    r"""Compute a loss that is low if no similarity is below a boundary.

    $$L = \frac{1}{s} \log \Big( 1 + \sum_n e^{-s (S_n - b)} \Big)$$

    The result is the mean over anchors.

    Args:
        similarities: Similarity S of each anchor to its n views (b, n), in any order.
        boundary: Boundary b of cosine similarities, in -1..1.
        scale: Scale s, above 0. The larger it is, the closer the loss is to that of the least similar view alone.

    Returns:
        The loss. Without anchors or views it is zero and has a gradient.

    Raises:
        ValueError: `similarities` is not a 2-D tensor, or a setting is out of its range.

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
    return _soft_maximum(float(boundary) - similarities, float(scale))


def seeded_generator(seed: int | None) -> torch.Generator:
    """Return a generator on the CPU with a seed; None means 0 until `set_default_seed` is called."""
    if seed is not None:
        check_integer("seed", seed, 0)
    return torch.Generator().manual_seed(0 if seed is None else int(seed))


def set_default_seed(generator: torch.Generator, seed: int) -> None:
    """Seed a generator unless it already has this seed, in which case it continues."""
    if generator.initial_seed() != seed:
        generator.manual_seed(int(seed))


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return a generator on a device whose seed is sampled from another generator."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def _increases_of_all_pairs(similarities: Float[Tensor, "b n"]) -> Float[Tensor, "b p"]:
    n = similarities.shape[1]
    earlier, later = torch.triu_indices(n, n, offset=1, device=similarities.device)
    return similarities[:, later] - similarities[:, earlier]


def _soft_maximum(values: Float[Tensor, "b m"], scale: float) -> Float[Tensor, ""]:
    """Return the mean of log(1 + sum(exp(scale * values))) / scale, a soft maximum of zero and the values of a row."""
    with_zero = functional.pad(scale * values, (1, 0))
    return with_zero.logsumexp(dim=1).sum() / (scale * max(1, len(values)))


def _check_similarities(similarities: Tensor) -> None:
    if similarities.ndim != 2:  # noqa: PLR2004
        found, remedy = f"shape {tuple(similarities.shape)}", "Pass one row per anchor and one column per view"
        raise value_error("`similarities` must be a 2-D tensor (b, n)", found, remedy)
