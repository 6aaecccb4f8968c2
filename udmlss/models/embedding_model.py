"""A trunk and an embedder as one model."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_features


class EmbeddingModel(nn.Module):
    """A trunk that turns images into features and an embedder that turns features into unit-length embeddings.

    Args:
        trunk: Images (b c h w) to features (b f): a backbone without its classifier.
        embedder: Features (b f) to embeddings (b d) of any length, often `nn.Linear(f, 512)`.

    Example:
        >>> model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64))
        >>> model(torch.rand(2, 3, 8, 8)).norm(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(self, trunk: nn.Module, embedder: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.embedder = embedder

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return unit-length embeddings.

        Raises:
            ValueError: The trunk's features are no matrix (b f).
            TypeError: They are no tensor.
        """
        return self.embed_features(self.trunk(images))

    def embed_features(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of the trunk's features."""
        check_features(features)
        embeddings = self.embedder(features)
        return functional.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
