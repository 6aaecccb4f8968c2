"""UDMLSSLoss and the losses that pytorch-metric-learning lacks."""

from udmlss.losses import deep_metric
from udmlss.losses.cbswr import CBSwRLoss, CBSwRTerms
from udmlss.losses.center_softmax import CenterSoftmaxLoss
from udmlss.losses.cluster_nca import ClusterNCALoss
from udmlss.losses.information import ClusteringHead, InformationLoss
from udmlss.losses.nearest_positive import NearestPositiveLoss
from udmlss.losses.reconstruction import Decoder, centroid_maps, reconstruction_loss
from udmlss.losses.relaxed_contrastive import STMLLoss
from udmlss.losses.self_supervised_ranking import SelfSupervisedRanking
from udmlss.losses.synthesis_ranking import SynthesisRankingLoss
from udmlss.losses.udmlss import UDMLSSLoss

__all__ = [
    "CBSwRLoss",
    "CBSwRTerms",
    "CenterSoftmaxLoss",
    "ClusterNCALoss",
    "ClusteringHead",
    "Decoder",
    "InformationLoss",
    "NearestPositiveLoss",
    "STMLLoss",
    "SelfSupervisedRanking",
    "SynthesisRankingLoss",
    "UDMLSSLoss",
    "centroid_maps",
    "deep_metric",
    "reconstruction_loss",
]
