"""Sheets of clusters: images of some clusters, one row per cluster."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from udmlss.training.rounds import Rounds

_IMAGES_PER_CLUSTER = 8
_HEIGHT = 96  # of a thumbnail in pixels
_GAP = 2  # between thumbnails in pixels
_WHITE = 1.0


def cluster_sheet(rounds: "Rounds", labels: Int64[Tensor, " n"], n_clusters: int) -> UInt8[Tensor, "h w 3"]:
    """Draw images of some clusters, one row per cluster, from the largest to the smallest.

    The images are those that are clustered. Each is scaled to its own smallest and largest value, because images are
    usually normalized. The same images of a cluster are chosen each time, and no random state changes.

    Args:
        rounds: The rounds, whose loader loads the images.
        labels: The cluster of every image; -1 is noise.
        n_clusters: Number of clusters, or all if there are fewer.
    """
    chosen = [_spread(members, _IMAGES_PER_CLUSTER) for members in _clusters(labels, n_clusters)]
    loaded = rounds.loader.items(rounds.cluster_images, torch.cat(chosen).tolist(), (rounds.seed,))
    thumbnails = list(map(_thumbnail, loaded))
    width = max(thumbnail.shape[2] for thumbnail in thumbnails)
    sheet = torch.full((3, len(chosen) * (_HEIGHT + _GAP), _IMAGES_PER_CLUSTER * (width + _GAP)), _WHITE)
    for row, indices in enumerate(chosen):
        for column in range(len(indices)):
            thumbnail = thumbnails.pop(0)
            top, left = row * (_HEIGHT + _GAP), column * (width + _GAP)
            sheet[:, top : top + _HEIGHT, left : left + thumbnail.shape[2]] = thumbnail
    return (sheet * 255).round().byte().permute(1, 2, 0).contiguous()


def _clusters(labels: Int64[Tensor, " n"], n_clusters: int) -> list[Int64[Tensor, " m"]]:
    """Return the indices of the members of some clusters, from the largest to the smallest."""
    sizes = labels[labels >= 0].bincount()
    by_size = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())]
    return [(labels == cluster).nonzero().flatten() for cluster in _spread(by_size, n_clusters)]


def _spread(values: Int64[Tensor, " n"], k: int) -> Int64[Tensor, " k"]:
    """Return k evenly spaced values, the first and the last among them, or all if there are fewer."""
    if len(values) <= k:
        return values
    return values[torch.linspace(0, len(values) - 1, k).round().long()]


def _thumbnail(image: Float[Tensor, "c h w"]) -> Float[Tensor, "3 s t"]:
    image = image.detach().cpu().float()
    image = image[:3] if len(image) > 2 else image[:1].expand(3, -1, -1)  # noqa: PLR2004 (channels)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low).clamp(min=1e-12)
    width = max(1, round(_HEIGHT * image.shape[2] / image.shape[1]))
    small = interpolate(image[None], (_HEIGHT, width), mode="bilinear", antialias=True)[0]
    return small.clamp(0, 1)
