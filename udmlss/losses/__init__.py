"""UDMLSSLoss and the losses that pytorch-metric-learning lacks."""

from udmlss.losses.self_supervised_ranking import SelfSupervisedRanking
from udmlss.losses.synthesis_ranking import SynthesisRankingLoss
from udmlss.losses.udmlss import UDMLSSLoss

__all__ = ["SelfSupervisedRanking", "SynthesisRankingLoss", "UDMLSSLoss"]
