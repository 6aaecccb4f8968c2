"""UDMLSSLoss and the losses that pytorch-metric-learning lacks."""

from udmlss.losses.cbswr import CBSwRLoss, CBSwRTerms
from udmlss.losses.center_softmax import CenterSoftmaxLoss
from udmlss.losses.information import ClusteringHead, InformationLoss
from udmlss.losses.reconstruction import Decoder, centroid_maps, reconstruction_loss
from udmlss.losses.udmlss import UDMLSSLoss

__all__ = [
    "CBSwRLoss",
    "CBSwRTerms",
    "CenterSoftmaxLoss",
    "ClusteringHead",
    "Decoder",
    "InformationLoss",
    "UDMLSSLoss",
    "centroid_maps",
    "reconstruction_loss",
]
