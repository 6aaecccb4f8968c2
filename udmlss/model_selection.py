"""Label-free scores of embeddings, for choosing between models without labels."""

from math import log

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from udmlss._checks import as_labels, check_distinct, check_embeddings, value_error
from udmlss._chunks import with_float64
from udmlss.neighbors.search import check_queries, search, without_self
from udmlss.results import LabelFreeScores
from udmlss.types import Labels

_N_NEIGHBORS = 20
_RANK_SAMPLE = 2**16  # largest number of embeddings whose effective rank is computed
_CHUNK = 8192  # rows that are converted to float64 at once


def label_free_scores(
    embeddings: Float[Tensor, "n d"], views: Float[Tensor, "m d"], indices: Labels
) -> LabelFreeScores:
    """Score embeddings without labels, by comparing some images with an augmented view of them.

    All images are searched. With fewer than 41 images, half of the other images are compared instead of 20. With more
    than 65,536 images, the effective rank is that of a random sample of 65,536 images, always the same.

    Args:
        embeddings: Embeddings of all images, of any floating type, in memory or mapped from a file.
        views: Embeddings of augmented views of some images, for example of a thousand.
        indices: Index in `embeddings` of the image of each view.

    Returns:
        The scores, which `LabelFreeScores` describes.

    Raises:
        TypeError: Indices are not integers.
        ValueError: Views have another dimension than the embeddings, an index is out of range, or embeddings are not
            finite or are all equal.

    Example:
        >>> label_free_scores(torch.eye(9), torch.eye(9)[:4] + 0.1, indices=[0, 1, 2, 3]).self_retrieval
        1.0
    """
    indices = _check_views(embeddings, views, indices).to(embeddings.device)
    k = min(_N_NEIGHBORS, max(1, (len(embeddings) - 1) // 2))  # with 21 images, lists of 20 would all be equal
    queries = torch.cat([embeddings[indices].float(), views.to(embeddings.device).float()])
    similarities, found = search(embeddings, k + 1, queries)
    m = len(indices)
    _, near_images = without_self((similarities[:m], found[:m]), indices)
    _, near_views = without_self((similarities[m:], found[m:]), indices)
    rank = effective_rank(embeddings)
    return LabelFreeScores(
        self_retrieval=_fraction(found[m:, 0] == indices),
        shared_neighbors=_fraction((near_images.unsqueeze(1) == near_views.unsqueeze(2)).any(dim=2)),
        effective_rank=rank,
        spread=_spread(rank, min(embeddings.shape[1], len(embeddings) - 1)),
    )


def effective_rank(embeddings: Float[Tensor, "n d"]) -> float:
    """Compute the effective number of dimensions of embeddings: 1 on a line, d if all directions have equal variance.

    It is the exponential of the entropy of the normalized singular values of the centered embeddings. With more than
    65,536 embeddings it is that of a random sample of 65,536, always the same.

    References:
        The effective rank: A measure of effective dimensionality. Roy, Vetterli. 2007.
        https://ieeexplore.ieee.org/document/7098875. As a label-free score, without centering: RankMe. Garrido et
        al. 2023. https://arxiv.org/abs/2210.02885
    """
    if len(embeddings) > _RANK_SAMPLE:
        embeddings = embeddings[_sample_indices(len(embeddings))]
    values = _singular_values(embeddings)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def _spread(effective_rank: float, highest: int) -> float:
    """Return the entropy as a fraction of the highest possible entropy; 0 if there is a single direction."""
    return min(1.0, log(effective_rank) / log(max(2, highest)))  # rounding can exceed 1


def _fraction(matches: Bool[Tensor, "..."]) -> float:
    return float(matches.float().mean())


def _singular_values(embeddings: Float[Tensor, "n d"]) -> Float64[Tensor, " r"]:
    """Return the singular values of the centered embeddings."""
    embeddings = with_float64(embeddings)
    mean = embeddings.mean(dim=0, dtype=torch.float64)
    if len(embeddings) < len(mean):  # the d - n zero eigenvalues of the squares would become noise
        values: Tensor = torch.linalg.svdvals(embeddings - mean)
        return values
    centered = (part - mean for part in embeddings.split(_CHUNK))
    squares = sum((part.T @ part for part in centered), start=torch.zeros_like(mean))
    values = torch.linalg.eigvalsh(squares)
    return values.clamp(min=0).sqrt()


def _sample_indices(n: int) -> Int64[Tensor, " j"]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_RANK_SAMPLE].sort().values


def _check_views(embeddings: Tensor, views: Tensor, indices: Labels) -> Int64[Tensor, " m"]:
    """Raise an error if the arguments do not match, and return the indices as a tensor."""
    check_distinct(check_embeddings(embeddings), len(embeddings))
    check_queries(views, embeddings, "views")
    indices = as_labels(indices, len(views), "indices")
    least, most = int(indices.min()), int(indices.max())
    if not 0 <= least <= most < len(embeddings):
        found, remedy = f"{least} to {most}", "Pass the row of `embeddings` of each view"
        raise value_error(f"`indices` must lie in 0..{len(embeddings) - 1}", found, remedy)
    return indices
