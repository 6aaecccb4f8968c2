"""Neighborhood component analysis (NCA) with the centers of small groups inside the clusters of a batch."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int64
from pytorch_metric_learning.utils.common_functions import indices_tuple_not_supported
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_embeddings, check_integer, check_number
from udmlss.losses.deep_metric.mined_loss import Indices
from udmlss.types import Labels


class ClusterNCALoss(nn.Module):
    r"""NCA loss of each embedding and the centers of the groups in its own cluster.

    $$-\frac1n\sum_i\log\frac{\sum_{g\in G_i}e^{-\alpha\,w_{ig}\lVert z_i-c_g\rVert^2}}
    {\sum_g e^{-\alpha\,w_{ig}\lVert z_i-c_g\rVert^2}},\quad
    w_{ig}=\begin{cases}\big(\frac{n_g}{n_g-1}\big)^2&i\in g\\1&\text{otherwise}\end{cases}$$

    for embeddings $z$ at unit length, the mean $c_g$ of the $n_g$ embeddings of group g, and the groups $G_i$ of the
    anchor's cluster. With the weight, the distance to the anchor's own group is that to the mean of its other members.
    The center of a group of one embedding is not used for this embedding, and the loss of an anchor without a center in
    its own cluster is zero. The gradient flows through the centers.

    The groups are those of scikit-learn's k-means, which runs on the CPU and receives each embedding concatenated with
    the one-hot vector of its cluster. A group with embeddings of several clusters is split into one group per cluster.

    Args:
        n_clusters: Number of groups for k-means, at least 1. If there are fewer distinct embeddings, their number is
            used. All defaults are the released values; this one is meant for batches of 80 to 128 images.
        scale: Scale alpha of squared distances, above 0.
        label_weight: Length of the one-hot vectors, at least 0.
        seed: Seed of k-means, at least 0, which is the same in every batch. None uses the seed of `fit`, or 0.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> from udmlss.losses import ClusterNCALoss
        >>> ClusterNCALoss(2)(torch.eye(4), [0, 0, 1, 1]).isfinite()
        tensor(True)

    References:
        Deep_Metric. Wang. 2018. https://github.com/bnu-wangxun/Deep_Metric. The released code runs k-means from ten
        starts and excludes every center at a squared distance below 0.001. This loss runs k-means from one start and
        excludes only the center of an embedding that is alone in its group.
    """

    def __init__(
        self, n_clusters: int = 32, *, scale: float = 16, label_weight: float = 0.1, seed: int | None = None
    ) -> None:
        super().__init__()
        check_integer("n_clusters", n_clusters, 1)
        check_number("scale", scale, above=0)
        check_number("label_weight", label_weight, 0)
        if seed is not None:
            check_integer("seed", seed, 0)
        self.n_clusters = int(n_clusters)
        self.scale = float(scale)
        self.label_weight = float(label_weight)
        self.seed = seed
        self._default_seed = 0

    def set_default_seed(self, seed: int) -> None:
        """Set the seed that is used if `seed` is None."""
        self._default_seed = seed

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Labels, indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Compute the sum over anchors, divided by the number of embeddings.

        Args:
            embeddings: Embeddings (b, d) of the batch.
            labels: Cluster of each embedding.
            indices_tuple: Must be None, because this loss does not use mined pairs.

        Raises:
            TypeError: The labels are not integers.
            ValueError: The embeddings are not finite, the labels are not one per embedding, or pairs were mined.
        """
        indices_tuple_not_supported(indices_tuple)
        check_embeddings(embeddings)
        embeddings = functional.normalize(embeddings)
        clusters: Tensor = as_labels(labels, len(embeddings)).to(embeddings.device).unique(return_inverse=True)[1]
        seed = self._default_seed if self.seed is None else int(self.seed)
        groups = k_means_groups(embeddings, clusters, self.n_clusters, label_weight=self.label_weight, seed=seed)
        return group_nca(embeddings, clusters, groups, scale=self.scale)


def k_means_groups(
    embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], n_clusters: int, *, label_weight: float, seed: int
) -> Int64[Tensor, " b"]:
    """Return the group of each embedding; the embeddings of a group are in one cluster.

    k-means receives the distinct rows in sorted order, with their counts as weights, so that the order and the
    repetition of rows do not change the groups.
    """
    one_hot = label_weight * functional.one_hot(labels.cpu())
    rows = torch.cat([embeddings.detach().cpu().double(), one_hot], dim=1).numpy()
    points, row_to_point, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    k_means = KMeans(min(n_clusters, len(points)), n_init=1, random_state=seed % 2**32)  # the range of scikit-learn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised for points that differ only by rounding
        parts = k_means.fit_predict(points, sample_weight=counts)[row_to_point.ravel()]
    pairs = torch.stack([labels, torch.from_numpy(parts).to(labels.device)])
    groups: Tensor = pairs.unique(dim=1, return_inverse=True)[1]
    return groups


def group_nca(
    embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], groups: Int64[Tensor, " b"], *, scale: float
) -> Float[Tensor, ""]:
    """Compute the loss for given groups, which are numbered from 0 and lie in one cluster each."""
    members = functional.one_hot(groups).to(embeddings)
    sizes = members.sum(dim=0)
    squares = torch.cdist(embeddings, members.T @ embeddings / sizes.unsqueeze(1)).square()
    weights = torch.where(members.bool(), (sizes / (sizes - 1).clamp(min=1)).square(), 1)
    is_alone = members.bool() & (sizes == 1)
    logits = (-scale * weights * squares).masked_fill(is_alone, float("-inf"))
    cluster_of_group = torch.zeros_like(labels[: len(sizes)]).scatter(0, groups, labels)
    own = logits.masked_fill(labels.unsqueeze(1) != cluster_of_group, float("-inf"))
    has_center = own.isfinite().any(dim=1)
    return (logits[has_center].logsumexp(dim=1) - own[has_center].logsumexp(dim=1)).sum() / len(embeddings)
