"""Losses from self-supervised ranking."""

from udmlss.losses.ranking.image_ranking import SelfSupervisedRanking
from udmlss.losses.ranking.synthesis_ranking import SynthesisRankingLoss

__all__ = ["SelfSupervisedRanking", "SynthesisRankingLoss"]
