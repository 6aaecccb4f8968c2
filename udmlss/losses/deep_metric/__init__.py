"""Losses of Deep_Metric that pytorch-metric-learning lacks, and functions for those that it has."""

from udmlss.losses.deep_metric.cluster_nca import ClusterNCALoss
from udmlss.losses.deep_metric.nearest_positive import NearestPositiveLoss
from udmlss.losses.deep_metric.pair_losses import (
    batch_all,
    batch_hard,
    binomial_deviance,
    contrastive,
    distance_weighted_margin,
    hard_mining,
    lifted_structure,
    multi_similarity,
    nca,
)

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
