"""Embeddings to label-free scores: how good they look to someone who has no labels."""

from math import log

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from udmlss._checks import check_embeddings, check_not_collapsed, value_error
from udmlss.neighbors.search import nearest, without_self
from udmlss.types import LabelFreeScores

_NEIGHBORS = 20
_JUDGED = 2**16  # most embeddings of which the effective rank is taken
_CHUNK = 8192  # rows that are held in double precision at once


def label_free_scores(
    embeddings: Float[Tensor, "n d"], views: Float[Tensor, "m d"], of: Int64[Tensor, " m"]
) -> LabelFreeScores:
    """Score embeddings by what a second, augmented view of some of the images gives.

    `LabelFreeScores` says what is measured. Of fewer than 41 images half of the others count as neighbours in place of
    20. All images are searched; of more than 65,536 so many, always the same, have their effective rank taken.

    Args:
        embeddings: Embeddings of all images, of any floating type, in memory or mapped from a file.
        views: Embeddings of augmented views of some of them, a thousand say.
        of: The image that each view is of, as a row of `embeddings`.

    Returns:
        The scores.

    Raises:
        ValueError: Views of another dimension, rows that are not there, embeddings that are not finite or all equal.

    Example:
        >>> label_free_scores(torch.eye(9), torch.eye(9)[:4] + 0.1, torch.arange(4)).self_retrieval
        1.0
    """
    _check_views(embeddings, views, of)
    check_not_collapsed(embeddings)
    k = min(_NEIGHBORS, max(1, (len(embeddings) - 1) // 2))  # of few images all would be shared
    views, of = views.to(embeddings.device), of.to(embeddings.device)
    queries = torch.cat([embeddings[of].float(), views.float()])
    similarities, indices = nearest(embeddings, k + 1, queries=queries)
    of_images = without_self((similarities[: len(of)], indices[: len(of)]), of)[1]
    by_view = similarities[len(of) :], indices[len(of) :]
    rank = effective_rank(embeddings)
    return LabelFreeScores(
        self_retrieval=_mean(by_view[1][:, 0] == of),
        shared_neighbors=_shared(of_images, without_self(by_view, of)[1]),
        effective_rank=rank,
        spread=_spread(rank, min(embeddings.shape[1], len(embeddings) - 1)),
    )


def _shared(one: Int64[Tensor, "m k"], other: Int64[Tensor, "m k"]) -> float:
    return _mean((one.unsqueeze(1) == other.unsqueeze(2)).any(dim=2))


def _spread(effective_rank: float, highest: int) -> float:
    """Return the share of the highest entropy; 0 where there is but one direction, and 1 at most for all rounding."""
    return min(1.0, log(effective_rank) / log(max(2, highest)))


def _mean(right: Bool[Tensor, "..."]) -> float:
    return float(right.float().mean())


def effective_rank(embeddings: Float[Tensor, "n d"]) -> float:
    """Return how many directions the embeddings fill: 1 on a line, d if they spread alike in every direction.

    The exponential of the entropy of the singular values about the mean; of more than 65,536 embeddings, of so many.

    References:
        The effective rank: A measure of effective dimensionality. Roy, Vetterli. 2007.
        https://ieeexplore.ieee.org/document/7098875. As a label-free score (not centred there): RankMe. Garrido et
        al. 2023. https://arxiv.org/abs/2210.02885
    """
    check_embeddings(embeddings)
    if len(embeddings) > _JUDGED:
        embeddings = embeddings[_drawn(len(embeddings))]
    values = _singular_values(embeddings)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _singular_values(embeddings: Float[Tensor, "n d"]) -> Float64[Tensor, " r"]:
    """Return the singular values of the embeddings about their mean."""
    mean = embeddings.mean(dim=0, dtype=torch.float64)
    if len(embeddings) < len(mean):  # squares would make noise of the d - n values that are zero
        values: Tensor = torch.linalg.svdvals(embeddings - mean)
        return values
    centred = (part - mean for part in embeddings.split(_CHUNK))
    squares = sum((part.T @ part for part in centred), start=torch.zeros_like(mean))
    values = torch.linalg.eigvalsh(squares)
    return values.clamp(min=0).sqrt()


def _drawn(n: int) -> Int64[Tensor, " j"]:
    """Return which images of so many stand for all: at random, always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_JUDGED].sort().values


def _check_views(embeddings: Tensor, views: Tensor, of: Tensor) -> None:
    check_embeddings(embeddings)
    check_embeddings(views, "views")
    if views.shape[1] != embeddings.shape[1] or of.shape != views.shape[:1]:
        found = f"shapes {tuple(views.shape)} and {tuple(of.shape)} beside {tuple(embeddings.shape)}"
        raise value_error(
            "`views` must have the embeddings' dimension, and `of` a row for each", found, "Embed both alike"
        )
    if not 0 <= int(of.min()) <= int(of.max()) < len(embeddings):
        found = f"{int(of.min())} to {int(of.max())}"
        raise value_error(f"`of` must lie in 0..{len(embeddings) - 1}", found, "Count the rows of `embeddings` from 0")
