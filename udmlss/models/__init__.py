"""Embedding models, the rotation head and initial embedders."""

from udmlss.models.batch_norm import frozen_batch_norm
from udmlss.models.embedding_model import EmbeddingModel, load_model
from udmlss.models.export import export_onnx, export_torch
from udmlss.models.neck import BatchNormNeck
from udmlss.models.pca import PCAEmbedder, embedder_from_features
from udmlss.models.rotation import RotationPretextHead, rotate_four_ways
from udmlss.models.saved_model import save_model

__all__ = [
    "BatchNormNeck",
    "EmbeddingModel",
    "PCAEmbedder",
    "RotationPretextHead",
    "embedder_from_features",
    "export_onnx",
    "export_torch",
    "frozen_batch_norm",
    "load_model",
    "rotate_four_ways",
    "save_model",
]
