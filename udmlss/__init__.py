"""Unsupervised deep metric learning in PyTorch: from unlabeled images to an embedding for retrieval."""

from udmlss import metrics
from udmlss.clustering import ClusterPseudoLabeler
from udmlss.color_comparison import ColorComparison, compare_colors
from udmlss.dataset import IndexedImages
from udmlss.evaluation import evaluate, evaluate_embeddings
from udmlss.inference import embed
from udmlss.losses import UDMLSSLoss
from udmlss.model_selection import label_free_scores
from udmlss.models import (
    EmbeddingModel,
    RotationPretextHead,
    embedder_from_features,
    frozen_batch_norm,
    rotate_four_ways,
)
from udmlss.neighbors import pair_with_neighbors
from udmlss.results import FitResult, LabelFreeScores, LossTerms, RoundReport, Scores, StepReport
from udmlss.sampler import PseudoLabelSampler
from udmlss.training import (
    BestWeights,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    MLflowLogger,
    Rounds,
    TensorBoardLogger,
    WandbLogger,
    WeightAverage,
    fit,
    keep_freed_memory,
    parameter_groups,
)
from udmlss.types import Epochs, PseudoLabels

__version__ = "0.1.0"

__all__ = [
    "BestWeights",
    "CSVLogger",
    "Checkpoint",
    "ClusterPseudoLabeler",
    "ColorComparison",
    "EarlyStopping",
    "EmbeddingModel",
    "Epochs",
    "FitResult",
    "IndexedImages",
    "LabelFreeScores",
    "LossTerms",
    "MLflowLogger",
    "PseudoLabelSampler",
    "PseudoLabels",
    "RotationPretextHead",
    "RoundReport",
    "Rounds",
    "Scores",
    "StepReport",
    "TensorBoardLogger",
    "UDMLSSLoss",
    "WandbLogger",
    "WeightAverage",
    "compare_colors",
    "embed",
    "embedder_from_features",
    "evaluate",
    "evaluate_embeddings",
    "fit",
    "frozen_batch_norm",
    "keep_freed_memory",
    "label_free_scores",
    "metrics",
    "pair_with_neighbors",
    "parameter_groups",
    "rotate_four_ways",
]
