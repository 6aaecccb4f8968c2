"""UDMLSSLoss and the losses that pytorch-metric-learning lacks."""

from udmlss.losses import deep_metric
from udmlss.losses.cluster_nca import ClusterNCALoss
from udmlss.losses.nearest_positive import NearestPositiveLoss
from udmlss.losses.udmlss import UDMLSSLoss

__all__ = ["ClusterNCALoss", "NearestPositiveLoss", "UDMLSSLoss", "deep_metric"]
