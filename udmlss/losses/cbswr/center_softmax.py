"""Softmax loss of the second view of each image and the centers of the other clusters of the batch."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_embeddings, check_number, value_error
from udmlss._torch import at_least_float32
from udmlss.types import Labels


class CenterSoftmaxLoss(nn.Module):
    r"""Softmax loss with the second view of an image as positive and the centers of other clusters as negatives.

    $$p(v | i) = \frac{e^{s(x_i, v) / t}}{e^{s(x_i, x'_i) / t} + \sum_{j \ne y_i} e^{s(x_i, c_j) / t}}$$

    $$L = \frac{1}{b} \sum_i \Big[ -\log p(x'_i | i) - w \sum_{j \ne y_i} \log(1 - p(c_j | i)) \Big]$$

    where $x'_i$ is the second view of image $i$, $y_i$ its cluster, $c_j$ are the centers of the clusters with images
    in the batch, $s$ is the cosine similarity, $t$ the temperature and $w$ the weight of the negatives. The center of
    an image's own cluster is neither a positive nor a negative. Only $x_i$ receives a gradient, second views and
    centers do not. If all images are in one cluster, there are no negatives and the loss is zero, with a gradient. The
    loss runs outside autocast, in float32, or in float64 for float64 embeddings.

    Args:
        temperature: Temperature t, above 0. The default is the published value.
        negative_weight: Weight w of the second term, at least 0. The default is the released value.

    Raises:
        ValueError: `temperature` is not above 0, or `negative_weight` is negative.

    Example:
        >>> from udmlss.losses import CenterSoftmaxLoss
        >>> CenterSoftmaxLoss()(torch.eye(4), torch.eye(4), [0, 0, 1, 1], torch.eye(2, 4)).shape
        torch.Size([])

    References:
        The paper of `CBSwRLoss` (https://arxiv.org/abs/2009.04091) uses the sum over images, this loss their mean. The
        released code divides the positive by the sum over other clusters alone, so that its "probability" can exceed 1;
        here the positive is part of the sum.
    """

    def __init__(self, temperature: float = 0.1, *, negative_weight: float = 1.0) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_number("negative_weight", negative_weight, 0)
        self.temperature = float(temperature)
        self.negative_weight = float(negative_weight)

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        second_embeddings: Float[Tensor, "b d"],
        clusters: Labels,
        centers: Float[Tensor, "k d"],
    ) -> Float[Tensor, ""]:
        """Compute the scalar loss.

        Args:
            embeddings: Embeddings (b, d) of the batch. Their length does not matter.
            second_embeddings: Embeddings (b, d) of the second view of each image.
            clusters: Cluster of each image, in 0..k-1.
            centers: Embeddings (k, d) of the cluster centers. Rows of clusters without images are ignored.

        Raises:
            TypeError: The clusters are not integers.
            ValueError: The shapes do not match, a cluster does not have a center, or the embeddings are not finite.
        """
        _check_shapes(embeddings, second_embeddings, centers)
        clusters = as_labels(clusters, len(embeddings), "clusters")
        smallest, largest = int(clusters.min()), int(clusters.max())
        if smallest < 0 or largest >= len(centers):
            rule, remedy = f"`clusters` must lie in 0..{len(centers) - 1}", "Pass one center for each cluster"
            raise value_error(rule, f"{smallest} to {largest}", remedy)
        is_negative = other_clusters(clusters.to(embeddings.device), len(centers))
        # Centers of clusters without images are set to zero because they may be NaN, the mean of an empty set.
        used_centers = centers.masked_fill(~is_negative.any(dim=0).unsqueeze(1), 0)
        with torch.autocast(embeddings.device.type, enabled=False):
            images, views, negatives = (
                functional.normalize(at_least_float32(rows))
                for rows in (embeddings, second_embeddings.detach(), used_centers.detach())
            )
            positive_logits = (images * views).sum(dim=1) / self.temperature
            negative_logits = (images @ negatives.T / self.temperature).masked_fill(~is_negative, -torch.inf)
            positive_loss, negative_loss = center_softmax(positive_logits, negative_logits)
            return (positive_loss + self.negative_weight * negative_loss).mean()


def other_clusters(clusters: Int64[Tensor, " b"], k: int) -> Bool[Tensor, "b k"]:
    """Return the mask, for each image, of the other clusters that have images in the batch."""
    own = clusters.unsqueeze(1) == torch.arange(k, device=clusters.device)
    return own.any(dim=0) & ~own


def center_softmax(
    positive: Float[Tensor, " b"], negative: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    r"""Compute $-\log p^+$ and $-\sum_j \log(1 - p^-_j)$ of the softmax over one positive and k negatives.

    A negative is excluded by a logit of minus infinity. The results are accurate even if the probability of a negative
    rounds to 1. Only that of the largest can, so its $1 - p$ is computed as the sum of all other probabilities.
    """
    logits = torch.cat([positive.unsqueeze(1), negative], dim=1)
    log_sum = logits.logsumexp(dim=1)
    is_largest = functional.one_hot(negative.argmax(dim=1), negative.shape[1]).bool()
    others = torch.cat([positive.unsqueeze(1), negative.masked_fill(is_largest, -torch.inf)], dim=1)
    log_p = (negative - log_sum.unsqueeze(1)).masked_fill(is_largest, -torch.inf)
    negative_loss = log_sum - others.logsumexp(dim=1) - torch.log1p(-log_p.exp()).sum(dim=1)
    return log_sum - positive, negative_loss


def _check_shapes(embeddings: Tensor, second_embeddings: Tensor, centers: Tensor) -> None:
    check_embeddings(embeddings)
    check_embeddings(second_embeddings, "second_embeddings")
    if embeddings.shape != second_embeddings.shape or embeddings.shape[1:] != centers.shape[1:]:
        rule = "`embeddings` and `second_embeddings` must have the same shape (b, d), and `centers` the shape (k, d)"
        shapes = ", ".join(str(tuple(rows.shape)) for rows in (embeddings, second_embeddings, centers))
        raise value_error(rule, shapes, "Embed all three with one model")
