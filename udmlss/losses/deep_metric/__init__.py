r"""Pair and triplet losses of Deep_Metric, built from parts of pytorch-metric-learning (PML).

Each function returns a module `(embeddings, labels) -> scalar` for `UDMLSSLoss`. A loss that needs a miner contains it,
so `UDMLSSLoss` needs no `miner`. All losses normalize the embeddings to unit length. The defaults are the released
values, unless a parameter says otherwise.

In the equations, $S_{ij}$ is the cosine similarity of two embeddings. The positives $P_i$ of anchor $i$ are the other
embeddings of its cluster, and its negatives $N_i$ are the embeddings of other clusters. Losses of cosine similarities
are sums over anchors, divided by the number n of embeddings. A term over an empty set is zero.

The released code differs in two cases. It skips anchors without negatives and fails for anchors without positives. Both
are absent from batches of two or more clusters with two or more images each. It also excludes every positive with a
cosine similarity of 1, whereas these functions exclude only the anchor itself.

References:
    Deep_Metric. Wang. 2018. https://github.com/bnu-wangxun/Deep_Metric
"""

from udmlss.losses.deep_metric.cluster_nca import ClusterNCALoss
from udmlss.losses.deep_metric.nearest_positive import NearestPositiveLoss
from udmlss.losses.deep_metric.pair_losses import (
    binomial_deviance,
    contrastive,
    hard_mining,
    lifted_structure,
    multi_similarity,
    nca,
)
from udmlss.losses.deep_metric.triplet_losses import batch_all, batch_hard, distance_weighted_margin

__all__ = [
    "ClusterNCALoss",
    "NearestPositiveLoss",
    "batch_all",
    "batch_hard",
    "binomial_deviance",
    "contrastive",
    "distance_weighted_margin",
    "hard_mining",
    "lifted_structure",
    "multi_similarity",
    "nca",
]
