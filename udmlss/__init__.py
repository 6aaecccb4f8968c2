"""Unsupervised deep metric learning: unlabelled images in, a retrieval embedding out."""

from udmlss import metrics
from udmlss.clustering.labeler import ClusterPseudoLabeler
from udmlss.dataset import IndexedImages
from udmlss.evaluation import evaluate, evaluate_embeddings
from udmlss.inference import embed
from udmlss.losses import UDMLSSLoss
from udmlss.model_selection import label_free_scores
from udmlss.models.batch_norm import frozen_batch_norm
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.pca import embedder_from_features
from udmlss.models.rotation import RotationPretextHead, rotate_four_ways
from udmlss.neighbors import pair_with_neighbors
from udmlss.sampler import PseudoLabelSampler
from udmlss.training.callbacks import StopWhenSettled
from udmlss.training.choosing import ClusterChoice, choose_n_clusters
from udmlss.training.fit import fit
from udmlss.training.optim import parameter_groups
from udmlss.types import Epochs, FitResult, LabelFreeScores, LossTerms, PseudoLabels, RoundReport, Scores

__version__ = "0.1.0"

__all__ = [
    "ClusterChoice",
    "ClusterPseudoLabeler",
    "EmbeddingModel",
    "Epochs",
    "FitResult",
    "IndexedImages",
    "LabelFreeScores",
    "LossTerms",
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
    "label_free_scores",
    "metrics",
    "pair_with_neighbors",
    "parameter_groups",
    "rotate_four_ways",
]
