"""UDMLSSLoss and the losses that pytorch-metric-learning lacks."""

from udmlss.losses.udmlss import UDMLSSLoss

__all__ = ["UDMLSSLoss"]
