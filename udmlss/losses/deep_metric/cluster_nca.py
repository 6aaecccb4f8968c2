"""NCA to the centres of small groups, into which clusters are split inside the batch."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from pytorch_metric_learning.utils.common_functions import indices_tuple_not_supported
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_embeddings, check_integer, check_number
from udmlss.losses.deep_metric.mined_loss import Indices


class ClusterNCALoss(nn.Module):
    r"""Split the batch's clusters into groups that lie together, and draw each embedding to its own cluster's groups.

    $$-\frac1n\sum_i\log\frac{\sum_{g\in G_i}e^{-\alpha\,w_{ig}\lVert z_i-c_g\rVert^2}}
    {\sum_g e^{-\alpha\,w_{ig}\lVert z_i-c_g\rVert^2}},\quad
    w_{ig}=\begin{cases}\big(\frac{n_g}{n_g-1}\big)^2&i\in g\\1&\text{otherwise}\end{cases}$$

    for embeddings $z$ at unit length, the mean $c_g$ of the $n_g$ embeddings of group g, and the groups $G_i$ of the
    anchor's cluster. The weight makes the distance to one's own group that to the mean of its others. A group of
    one is no centre for its own member; an anchor that so has no centre in its own cluster loses nothing. The gradient
    runs through the centres.

    The groups are those of k-means on each embedding beside its cluster's one-hot vector, cut where they still hold
    two clusters. k-means runs in scikit-learn on the CPU.

    Args:
        n_clusters: Number of groups that k-means looks for, at least 1; fewer where fewer embeddings differ. Default
            as released, for batches of 80 to 128: 32.
        scale: Scale alpha of squared distances, above 0. Default as released: 16.
        label_weight: Length of the one-hot vectors, at least 0. Default as released: 0.1.
        seed: Seed of k-means, the same in every batch. Default as released: 0.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from udmlss.losses import ClusterNCALoss
        >>> ClusterNCALoss(2)(torch.eye(4), torch.tensor([0, 0, 1, 1])).isfinite()
        tensor(True)

    References:
        Deep_Metric. Wang. 2018. https://github.com/bnu-wangxun/Deep_Metric. Its code starts k-means ten times, here it
        is once; it leaves out every centre at a squared distance below 0.001, here only one's own where one is alone.
    """

    def __init__(self, n_clusters: int = 32, *, scale: float = 16, label_weight: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        check_integer("n_clusters", n_clusters, 1)
        check_number("scale", scale, above=0)
        check_number("label_weight", label_weight, 0)
        self.n_clusters = n_clusters
        self.scale = scale
        self.label_weight = label_weight
        self.seed = seed

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"], indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss, divided by all embeddings of the batch.

        Args:
            embeddings: Embeddings of the batch.
            labels: Their clusters.
            indices_tuple: None; the place of mined pairs in PML, which this loss does not take.

        Raises:
            ValueError: Embeddings are not finite, which k-means cannot take, or there are mined pairs.
        """
        indices_tuple_not_supported(indices_tuple)
        check_embeddings(embeddings)
        embeddings = functional.normalize(embeddings)
        labels = labels.unique(return_inverse=True)[1]
        found = k_means_groups(embeddings, labels, self.n_clusters, label_weight=self.label_weight, seed=self.seed)
        return group_nca(embeddings, labels, found, scale=self.scale)


def k_means_groups(
    embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], n_clusters: int, *, label_weight: float, seed: int
) -> Int64[Tensor, " b"]:
    """Return the group of each embedding, none of which holds two clusters; labels are 0..k-1.

    Rows go into k-means sorted and each once, with their counts, so that their order and repetition make no difference.
    """
    one_hot = label_weight * functional.one_hot(labels)
    rows = torch.cat([embeddings.detach().double(), one_hot], dim=1).numpy(force=True)
    points, of_row, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    k_means = KMeans(min(n_clusters, len(points)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # points that differ by rounding only
        found = k_means.fit_predict(points, sample_weight=counts)[of_row.ravel()]
    pairs = torch.stack([labels, torch.from_numpy(found).to(labels.device)])
    groups: Tensor = pairs.unique(dim=1, return_inverse=True)[1]
    return groups


def group_nca(
    embeddings: Float[Tensor, "b d"], labels: Int64[Tensor, " b"], groups: Int64[Tensor, " b"], *, scale: float
) -> Float[Tensor, ""]:
    """Return the loss for given groups, numbered from 0 and each of one cluster."""
    members = functional.one_hot(groups).to(embeddings)
    sizes = members.sum(dim=0)
    squares = torch.cdist(embeddings, members.T @ embeddings / sizes.unsqueeze(1)).square()
    weights = torch.where(members.bool(), (sizes / (sizes - 1).clamp(min=1)).square(), 1)
    alone = members.bool() & (sizes == 1)
    logits = (-scale * weights * squares).masked_fill(alone, float("-inf"))
    cluster_of = torch.zeros_like(labels[: len(sizes)]).scatter(0, groups, labels)
    own = logits.masked_fill(labels.unsqueeze(1) != cluster_of, float("-inf"))
    drawn = own.isfinite().any(dim=1)
    return (logits[drawn].logsumexp(dim=1) - own[drawn].logsumexp(dim=1)).sum() / len(embeddings)
