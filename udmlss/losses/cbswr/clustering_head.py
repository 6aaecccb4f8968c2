"""Clusters learnt by gradient inside the batch: the head that assigns them, and the loss that shapes them."""

from math import log

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_integer, check_number, value_error


class ClusteringHead(nn.Module):
    """Assigns embeddings to K in-batch clusters: BatchNorm, Dropout, Linear to one logit per cluster.

    The most likely cluster of an image is `head(embeddings).argmax(dim=1)`.

    Args:
        embedding_size: Dimension d of the embeddings.
        n_clusters: Number of clusters K, at most the batch's images. The default is the published setting, 32; 100
            is the default of the released training.
        dropout: Share of the dimensions dropped in training. Default as released: 0.6.

    Raises:
        ValueError: A dimension below 1, fewer than 2 clusters, or a share outside 0..1.

    Example:
        >>> from udmlss.losses import ClusteringHead
        >>> ClusteringHead(128)(torch.randn(64, 128)).shape
        torch.Size([64, 32])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091. The released code scales the logits of an image to unit length, which
        caps the largest probability at e / (e + K - 1), 0.03 for K = 100; here they are left as they are.
    """

    def __init__(self, embedding_size: int, n_clusters: int = 32, *, dropout: float = 0.6) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size, 1)
        check_integer("n_clusters", n_clusters, 2)
        self.n_clusters = n_clusters
        self.layers = nn.Sequential(
            nn.BatchNorm1d(embedding_size), nn.Dropout(dropout), nn.Linear(embedding_size, n_clusters)
        )

    def forward(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the logits of the clusters."""
        logits: Tensor = self.layers(embeddings)
        return logits


class InformationLoss(nn.Module):
    r"""Clusters that differ in size as little as they can, each image in one of them as surely as it can be.

    $$L = -\mu \, \frac{H(Y) - H(Y | X)}{\log K}$$

    where $H(Y)$ is the entropy of the mean assignment over the batch and $H(Y | X)$ the mean entropy of an image's
    assignment, both in nats, so that $-L / \mu$, the mutual information of images and clusters, lies in 0..1. The l2
    term of regularised information maximisation is the optimiser's: give the head's parameters a weight decay. It runs
    in float32 outside autocast, in float64 if given that.

    Args:
        weight: Weight mu. Default as released: 1.

    Raises:
        ValueError: `weight` is negative.

    Example:
        >>> from udmlss.losses import InformationLoss
        >>> InformationLoss()(100 * torch.eye(4))
        tensor(-1.)

    References:
        Discriminative Clustering by Regularized Information Maximization. Gomes, Krause, Perona. 2010.
        https://proceedings.neurips.cc/paper/2010/hash/42998cf32d552343bc8e460416382dca-Abstract.html.
        Nguyen et al. 2020 (https://arxiv.org/abs/2009.04091) train with it; their released code divides $H(Y | X)$ by
        the logarithm of the batch's size and has no l2 term.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_number("weight", weight, 0)
        self.weight = weight

    def forward(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            logits: What a clustering head says of the batch's images.

        Raises:
            ValueError: There are fewer than 2 clusters.
        """
        if logits.shape[1] < 2:  # noqa: PLR2004 (log K would be zero)
            raise value_error(
                "`logits` must be of 2 or more clusters", logits.shape[1], "Raise `n_clusters` of the head"
            )
        with torch.autocast(logits.device.type, enabled=False):
            return -self.weight * mutual_information(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def mutual_information(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Return the mutual information of images and clusters, in 0..1: entropies in nats, divided by log K."""
    log_p = functional.log_softmax(logits, dim=1)
    log_mean = log_p.logsumexp(dim=0) - log(len(logits))
    return (_entropy(log_mean) - _entropy(log_p).mean()) / log(logits.shape[1])


def _entropy(log_p: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    return -(log_p.exp() * log_p).sum(dim=-1)
