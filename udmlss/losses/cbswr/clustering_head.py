"""Clustering head that is trained inside each batch, and its loss."""

from math import log

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_integer, check_number, value_error
from udmlss._torch import at_least_float32


class ClusteringHead(nn.Module):
    """Head that assigns embeddings to K clusters of the batch: BatchNorm, Dropout, and Linear to the logits.

    The most likely cluster of an image is `head(embeddings).argmax(dim=1)`.

    Args:
        embedding_size: Dimension d of the embeddings.
        n_clusters: Number of clusters K, at least 2 and at most the number of images in a batch. The default is the
            published value; the released training uses 100.
        dropout: Probability of zeroing a dimension in training, in 0..1. The default is the released value.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> from udmlss.losses import ClusteringHead
        >>> ClusteringHead(128)(torch.randn(64, 128)).shape
        torch.Size([64, 32])

    References:
        The paper of `CBSwRLoss` (https://arxiv.org/abs/2009.04091). Its released code normalizes the logits of an image
        to unit length, which limits the largest probability to e / (e + K - 1), 0.03 for K = 100; this head does not.
    """

    def __init__(self, embedding_size: int, n_clusters: int = 32, *, dropout: float = 0.6) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size, 1)
        check_integer("n_clusters", n_clusters, 2)
        check_number("dropout", dropout, 0, 1)
        self.n_clusters = int(n_clusters)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(int(embedding_size)),
            nn.Dropout(float(dropout)),
            nn.Linear(int(embedding_size), self.n_clusters),
        )

    def forward(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the logits (b, k) of the clusters."""
        logits: Tensor = self.layers(embeddings)
        return logits


class InformationLoss(nn.Module):
    r"""Negative mutual information of images and clusters, which is low for balanced and confident assignments.

    $$L = -\mu \, \frac{H(Y) - H(Y | X)}{\log K}$$

    where $H(Y)$ is the entropy of the mean assignment over the batch and $H(Y | X)$ the mean entropy of the assignment
    of each image, both in nats. The mutual information $-L / \mu$ thus lies in 0..1. Regularized information
    maximization also has an l2 term, which is the weight decay that the optimizer applies to the parameters of the
    head. The loss runs outside autocast, in float32, or in float64 for float64 logits.

    Args:
        weight: Weight mu, at least 0. The default is the released value.

    Raises:
        ValueError: `weight` is negative.

    Example:
        >>> from udmlss.losses import InformationLoss
        >>> InformationLoss()(100 * torch.eye(4))
        tensor(-1.)

    References:
        Discriminative Clustering by Regularized Information Maximization. Gomes, Krause, Perona. 2010.
        https://proceedings.neurips.cc/paper/2010/hash/42998cf32d552343bc8e460416382dca-Abstract.html.
        Nguyen et al. 2020 (https://arxiv.org/abs/2009.04091) use it in training; their released code divides
        $H(Y | X)$ by the logarithm of the batch size and has no l2 term.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_number("weight", weight, 0)
        self.weight = float(weight)

    def forward(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Compute the scalar loss.

        Args:
            logits: Logits (b, k) of a clustering head for the images of a batch.

        Raises:
            ValueError: There are fewer than 2 clusters.
        """
        if logits.shape[1] < 2:  # noqa: PLR2004 (log K would be zero)
            rule = "`logits` must have at least 2 columns, one per cluster"
            raise value_error(rule, logits.shape[1], "Raise `n_clusters` of the head")
        with torch.autocast(logits.device.type, enabled=False):
            return -self.weight * mutual_information(at_least_float32(logits))


def mutual_information(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Compute the mutual information of images and clusters, divided by its maximum log K."""
    log_p = functional.log_softmax(logits, dim=1)
    log_mean = log_p.logsumexp(dim=0) - log(len(logits))
    return (_entropy(log_mean) - _entropy(log_p).mean()) / log(logits.shape[1])


def _entropy(log_p: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    return -(log_p.exp() * log_p).sum(dim=-1)
