"""Unsupervised deep metric learning: unlabelled images in, a retrieval embedding out."""

from udmlss import metrics
from udmlss.batch_norm import frozen_batch_norm
from udmlss.callbacks import StopWhenSettled
from udmlss.choosing import ClusterChoice, choose_n_clusters
from udmlss.embedding import EmbeddingModel, embed
from udmlss.evaluation import evaluate, evaluate_embeddings
from udmlss.indexing import IndexedImages
from udmlss.judging import judge_embeddings
from udmlss.labeling import ClusterPseudoLabeler
from udmlss.losses import UDMLSSLoss
from udmlss.optimizing import parameter_groups
from udmlss.pairing import pair_with_neighbors
from udmlss.projection import embedder_from_features
from udmlss.rotation import RotationPretextHead, rotate_four_ways
from udmlss.sampling import PseudoLabelSampler
from udmlss.training import fit
from udmlss.types import FitResult, LabelFreeScores, LossTerms, Passes, PseudoLabels, RoundReport, Scores

__version__ = "0.1.0"

__all__ = [
    "ClusterChoice",
    "ClusterPseudoLabeler",
    "EmbeddingModel",
    "FitResult",
    "IndexedImages",
    "LabelFreeScores",
    "LossTerms",
    "Passes",
    "PseudoLabelSampler",
    "PseudoLabels",
    "RotationPretextHead",
    "RoundReport",
    "Scores",
    "StopWhenSettled",
    "UDMLSSLoss",
    "choose_n_clusters",
    "embed",
    "embedder_from_features",
    "evaluate",
    "evaluate_embeddings",
    "fit",
    "frozen_batch_norm",
    "judge_embeddings",
    "metrics",
    "pair_with_neighbors",
    "parameter_groups",
    "rotate_four_ways",
]
