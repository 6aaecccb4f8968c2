"""The clusters that a report shows, and the order of their images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from udmlss._chunks import group_means, row_slices
from udmlss.neighbors.search import unit_length
from udmlss.types import PseudoLabels

_SAMPLED = 20_000  # images whose margins are computed
_ALL_CLUSTERS = 8  # largest number of clusters that are all shown
_PER_GROUP = 4


@dataclass(frozen=True, eq=False)
class ClusterGroup:
    """Clusters that are shown together.

    Attributes:
        title: Title of the group.
        clusters: Numbers of the clusters.
    """

    title: str
    clusters: list[int]


def image_reliability(
    embeddings: Float[Tensor, "n d"], pseudo_labels: PseudoLabels, seed: int
) -> Float32[Tensor, " n"]:
    """Return the reliability of each image's pseudo-label; NaN where it is unknown.

    Without reliabilities from the labeler this is the cosine similarity to the mean embedding of the image's cluster
    minus the largest similarity to the mean of another cluster, for a sample of at most 20,000 images.
    """
    if pseudo_labels.reliability is not None:
        return pseudo_labels.reliability.float().cpu()
    labels = pseudo_labels.labels.cpu()
    margins = torch.full((len(labels),), torch.nan)
    rows = (labels >= 0).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)[:_SAMPLED]].sort().values
    centers = unit_length(group_means(embeddings, labels, pseudo_labels.n_clusters)).cpu()
    for part in row_slices(torch.empty(len(rows), max(centers.shape), device="meta")):
        chosen = rows[part]
        similarities = unit_length(embeddings[chosen.to(embeddings.device)]).cpu() @ centers.T
        own = similarities.gather(1, labels[chosen].unsqueeze(1)).squeeze(1)
        others = similarities.scatter_(1, labels[chosen].unsqueeze(1), -1.0).amax(dim=1)
        margins[chosen] = own - others if len(centers) > 1 else own
    return margins


def cluster_reliability(reliability: Float32[Tensor, " n"], pseudo_labels: PseudoLabels) -> Float32[Tensor, " k"]:
    """Return the mean reliability of the images of each cluster; NaN for clusters without known reliabilities."""
    labels = pseudo_labels.labels.cpu()
    known = (labels >= 0) & reliability.isfinite()
    sums = torch.zeros(pseudo_labels.n_clusters, dtype=torch.float64)
    sums.index_add_(0, labels[known], reliability[known].double())
    return (sums / labels[known].bincount(minlength=len(sums))).float()


def choose_clusters(sizes: Int64[Tensor, " k"], reliability: Float32[Tensor, " k"]) -> list[ClusterGroup]:
    """Return the largest, smallest, most and least reliable clusters, each once, or all clusters if there are few."""
    by_size = sizes.cpu().argsort(descending=True, stable=True).tolist()
    if len(by_size) <= _ALL_CLUSTERS:
        return [ClusterGroup("All clusters, the largest first", by_size)]
    others = set(by_size[_PER_GROUP:-_PER_GROUP])
    by_reliability = [
        cluster
        for cluster in reliability.argsort(descending=True, stable=True).tolist()
        if cluster in others and reliability[cluster].isfinite()
    ]
    most = by_reliability[:_PER_GROUP]
    least = by_reliability[_PER_GROUP:][::-1][:_PER_GROUP]
    return [
        ClusterGroup("Largest clusters", by_size[:_PER_GROUP]),
        ClusterGroup("Smallest clusters", by_size[::-1][:_PER_GROUP]),
        ClusterGroup("Most reliable of the other clusters", most),
        ClusterGroup("Least reliable of the other clusters", least),
    ]


def by_typicality(embeddings: Float[Tensor, "n d"], pseudo_labels: PseudoLabels, cluster: int) -> list[int]:
    """Return the images of a cluster, in descending order of their similarity to its mean embedding."""
    rows = (pseudo_labels.labels.cpu() == cluster).nonzero().flatten()
    members = unit_length(embeddings[rows.to(embeddings.device)].detach())
    order = (members @ unit_length(members.mean(dim=0, keepdim=True)).T).flatten().argsort(descending=True, stable=True)
    return [int(row) for row in rows[order.cpu()]]
