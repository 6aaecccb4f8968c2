"""A trunk and an embedder as one model."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_features, type_error
from udmlss._torch import to_dtype


class EmbeddingModel(nn.Module):
    """A trunk that computes features from images, and an embedder that computes unit-length embeddings from features.

    Args:
        trunk: Module from images (b, c, h, w) to features (b, f): a backbone without its classifier. If it returns an
            object with several outputs, as models of Hugging Face do, its `pooler_output` is used.
        embedder: Module from features (b, f) to embeddings (b, d) of any length, often `nn.Linear(f, 512)`.

    Raises:
        TypeError: `trunk` or `embedder` is not a module.

    Example:
        >>> model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64))
        >>> model(torch.rand(2, 3, 8, 8)).norm(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(self, trunk: nn.Module, embedder: nn.Module) -> None:
        super().__init__()
        for name, part in (("trunk", trunk), ("embedder", embedder)):
            if not isinstance(part, nn.Module):
                found = "the class " + part.__name__ if isinstance(part, type) else type(part).__name__
                remedy = "Pass an instance of a subclass of nn.Module"
                raise type_error(f"`{name}` must be an nn.Module", found, remedy)
        self.trunk = trunk
        self.embedder = embedder

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of images.

        Raises:
            ValueError: The trunk's features are not of shape (b, f).
            TypeError: The trunk or the embedder does not return a tensor.
        """
        return self.embed_features(as_features(self.trunk(images)))

    def embed_features(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of the trunk's features, in float32 or float64.

        Features are converted to the data type of the embedder.

        Raises:
            ValueError: The features are not of shape (b, f).
            TypeError: The features are not a tensor, or the embedder does not return one.
        """
        embeddings = self.embedder(to_dtype(as_features(features), self.embedder))
        if not isinstance(embeddings, Tensor):
            remedy = "Wrap it in an nn.Module whose `forward` returns one tensor"
            raise type_error("The embedder must return a tensor (b, d)", type(embeddings).__name__, remedy)
        return functional.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))


def trunk_of(model: nn.Module) -> nn.Module:
    """Return the trunk of an `EmbeddingModel`, compiled or not.

    Raises:
        TypeError: The model has no trunk.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise type_error(
            "`model` must have a `trunk` that computes features",
            type(model).__name__,
            "Wrap it: EmbeddingModel(trunk, embedder)",
        )
    return trunk
