"""CBSwR: Center-based Softmax with Reconstruction."""

from udmlss.losses.cbswr.cbswr_loss import CBSwRLoss, CBSwRTerms
from udmlss.losses.cbswr.center_softmax import CenterSoftmaxLoss
from udmlss.losses.cbswr.clustering_head import ClusteringHead, InformationLoss
from udmlss.losses.cbswr.decoder import Decoder, center_maps, reconstruction_loss

__all__ = [
    "CBSwRLoss",
    "CBSwRTerms",
    "CenterSoftmaxLoss",
    "ClusteringHead",
    "Decoder",
    "InformationLoss",
    "center_maps",
    "reconstruction_loss",
]
