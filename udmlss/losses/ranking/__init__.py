"""Self-supervised ranking of distorted images and of synthetic embeddings."""

from udmlss.losses.ranking.functional import positive_loss, rank_loss
from udmlss.losses.ranking.image_ranking import SelfSupervisedRanking, distort
from udmlss.losses.ranking.synthesis_ranking import SynthesisRankingLoss

__all__ = ["SelfSupervisedRanking", "SynthesisRankingLoss", "distort", "positive_loss", "rank_loss"]
