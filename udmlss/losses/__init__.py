"""UDMLSSLoss, and losses of other methods that pytorch-metric-learning does not have."""

from udmlss.losses import deep_metric
from udmlss.losses.cbswr import (
    CBSwRLoss,
    CBSwRTerms,
    CenterSoftmaxLoss,
    ClusteringHead,
    Decoder,
    InformationLoss,
    center_maps,
    reconstruction_loss,
)
from udmlss.losses.cluster_memory import ClusterMemoryLoss
from udmlss.losses.deep_metric import ClusterNCALoss, NearestPositiveLoss
from udmlss.losses.ranking import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.losses.stml import STMLLoss
from udmlss.losses.udmlss_loss import UDMLSSLoss

__all__ = [
    "CBSwRLoss",
    "CBSwRTerms",
    "CenterSoftmaxLoss",
    "ClusterMemoryLoss",
    "ClusterNCALoss",
    "ClusteringHead",
    "Decoder",
    "InformationLoss",
    "NearestPositiveLoss",
    "STMLLoss",
    "SelfSupervisedRanking",
    "SynthesisRankingLoss",
    "UDMLSSLoss",
    "center_maps",
    "deep_metric",
    "reconstruction_loss",
]
