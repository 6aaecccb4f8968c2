"""Each image against its second view and the centroids of the other clusters of its batch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_embeddings, check_number, value_error


class CenterSoftmaxLoss(nn.Module):
    r"""Draws an image to its second view and away from the centroids of the other clusters in the batch.

    $$p(v | i) = \frac{e^{s(x_i, v) / t}}{e^{s(x_i, x'_i) / t} + \sum_{j \ne y_i} e^{s(x_i, c_j) / t}}$$

    $$L = \frac{1}{b} \sum_i \Big[ -\log p(x'_i | i) - w \sum_{j \ne y_i} \log(1 - p(c_j | i)) \Big]$$

    where $x'_i$ is the second view of image $i$, $y_i$ its cluster, $c_j$ the centroids of the clusters that have an
    image in the batch, $s$ the cosine, $t$ the temperature and $w$ the weight of the negatives. An image's own centroid
    is no positive and no negative. Only $x_i$ gets a gradient: second views and centroids are taken as they are.
    Where all images are in one cluster there is no negative, and the loss is zero, with a gradient. It runs in float32
    outside autocast, in float64 if given that.

    Args:
        temperature: Temperature t. Default as published: 0.1.
        negative_weight: Weight w of the second term. Default as in the released training: 1.

    Raises:
        ValueError: `temperature` is not above zero, or `negative_weight` is negative.

    Example:
        >>> from udmlss.losses import CenterSoftmaxLoss
        >>> views, clusters, centroids = torch.eye(4), torch.tensor([0, 0, 1, 1]), torch.eye(2, 4)
        >>> CenterSoftmaxLoss()(views, views, clusters, centroids).shape
        torch.Size([])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091. In the released training the positive is divided by the sum over other
        clusters alone, so that its "probability" can exceed 1; here it is part of the sum. The paper sums over images;
        here their mean is taken.
    """

    def __init__(self, temperature: float = 0.1, *, negative_weight: float = 1.0) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_number("negative_weight", negative_weight, 0)
        self.temperature = temperature
        self.negative_weight = negative_weight

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        second_embeddings: Float[Tensor, "b d"],
        clusters: Int[Tensor, " b"],
        centroids: Float[Tensor, "k d"],
    ) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            embeddings: Embeddings of the batch, of any length.
            second_embeddings: Embeddings of the second view of each image.
            clusters: Cluster of each image, in 0..k-1.
            centroids: Embeddings of the clusters' centroids; rows of clusters without an image are not looked at.

        Raises:
            ValueError: Shapes do not fit, or a cluster has no centroid.
            TypeError: Clusters are not whole numbers.
        """
        _check_batch(embeddings, second_embeddings, clusters, centroids)
        negatives = other_clusters(clusters.to(embeddings.device), len(centroids))
        used = centroids.masked_fill(~negatives.any(dim=0).unsqueeze(1), 0)  # others may be means of nothing: NaN
        with torch.autocast(embeddings.device.type, enabled=False):
            images, views, centers = (
                functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)))
                for rows in (embeddings, second_embeddings.detach(), used.detach())
            )
            positive = (images * views).sum(dim=1) / self.temperature
            negative = (images @ centers.T / self.temperature).masked_fill(~negatives, -torch.inf)
            attract, repel = center_softmax(positive, negative)
            return (attract + self.negative_weight * repel).mean()


def other_clusters(clusters: Int[Tensor, " b"], k: int) -> Bool[Tensor, "b k"]:
    """Return for each image which of k clusters are another one than its own and have an image of the batch."""
    own = clusters.unsqueeze(1) == torch.arange(k, device=clusters.device)
    return own.any(dim=0) & ~own


def center_softmax(
    positive: Float[Tensor, " b"], negative: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    r"""Return $-\log p^+$ and $-\sum_j \log(1 - p^-_j)$ of the softmax over one positive and k negatives.

    Logits of minus infinity stand for no negative. Both are exact where a probability rounds to 1: at most one
    negative can come near it, the largest, and of that $1 - p$ is the share of all others.
    """
    logits = torch.cat([positive.unsqueeze(1), negative], dim=1)
    whole = logits.logsumexp(dim=1)
    is_largest = functional.one_hot(negative.argmax(dim=1), negative.shape[1]).bool()
    others = torch.cat([positive.unsqueeze(1), negative.masked_fill(is_largest, -torch.inf)], dim=1)
    log_p = (negative - whole.unsqueeze(1)).masked_fill(is_largest, -torch.inf)
    repel = whole - others.logsumexp(dim=1) - torch.log1p(-log_p.exp()).sum(dim=1)
    return whole - positive, repel


def _check_batch(embeddings: Tensor, second_embeddings: Tensor, clusters: Tensor, centroids: Tensor) -> None:
    check_embeddings(embeddings)
    if embeddings.shape != second_embeddings.shape or embeddings.shape[1:] != centroids.shape[1:]:
        shapes = [tuple(rows.shape) for rows in (embeddings, second_embeddings, centroids)]
        raise value_error(
            "`embeddings` and `second_embeddings` must have one shape (b d), and `centroids` their dimension",
            ", ".join(map(str, shapes)),
            "Embed all three with one model",
        )
    as_labels(clusters, len(embeddings), "clusters")
    if not 0 <= int(clusters.min()) <= int(clusters.max()) < len(centroids):
        found = f"{int(clusters.min())} to {int(clusters.max())}"
        raise value_error(
            f"`clusters` must lie in 0..{len(centroids) - 1}", found, "Pass one centroid for each cluster"
        )
