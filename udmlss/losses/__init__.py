"""UDMLSSLoss and the losses that pytorch-metric-learning lacks."""

from udmlss.losses import deep_metric
from udmlss.losses.cbswr.cbswr_loss import CBSwRLoss, CBSwRTerms
from udmlss.losses.cbswr.center_softmax import CenterSoftmaxLoss
from udmlss.losses.cbswr.clustering_head import ClusteringHead, InformationLoss
from udmlss.losses.cbswr.decoder import Decoder, centroid_maps, reconstruction_loss
from udmlss.losses.deep_metric.cluster_nca import ClusterNCALoss
from udmlss.losses.deep_metric.nearest_positive import NearestPositiveLoss
from udmlss.losses.ranking.image_ranking import SelfSupervisedRanking
from udmlss.losses.ranking.synthesis_ranking import SynthesisRankingLoss
from udmlss.losses.stml import STMLLoss
from udmlss.losses.udmlss_loss import UDMLSSLoss

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
