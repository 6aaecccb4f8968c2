"""An initial embedder computed by principal component analysis."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_embeddings, check_integer
from udmlss._chunks import row_slices, with_float64


def embedder_from_features(features: Float[Tensor, "n f"], embedding_size: int) -> nn.Linear:
    """Compute the linear embedder that best preserves the cosine similarities between features.

    The embedder projects unit-length features onto their first principal directions, without centering. A randomly
    initialized embedder discards part of what a pretrained trunk has learned, and training it with the learning rate
    of new layers discards more. Train this embedder with the learning rate of the trunk.

    Args:
        features: The trunk's features (n, f) of the training images, of any length, in memory or mapped from a file.
        embedding_size: Dimension d of the embeddings, at most f.

    Returns:
        A linear layer from features (b, f) to embeddings (b, d), with orthonormal rows and a bias of zero, on the
        device of the features.

    Raises:
        ValueError: `embedding_size` is not in 1..f, or the features are not a finite 2-D tensor.

    Example:
        >>> trunk = nn.Flatten()
        >>> images = torch.rand(40, 3, 8, 8)
        >>> model = EmbeddingModel(trunk, embedder_from_features(trunk(images), 16))
        >>> model(images).shape
        torch.Size([40, 16])

    References:
        The approximation of one matrix by another of lower rank. Eckart, Young. 1936.
        https://doi.org/10.1007/BF02288367
    """
    check_embeddings(features, "features")
    size = features.shape[1]
    check_integer("embedding_size", embedding_size, 1, size)
    parts = (with_float64(features[rows].detach()) for rows in row_slices(features))
    unit = (functional.normalize(part.double()) for part in parts)
    start = with_float64(features[:0]).new_zeros(size, size, dtype=torch.float64)
    products = sum((rows.T @ rows for rows in unit), start=start)
    directions = _eigenvectors(products).flip(1)  # eigh sorts eigenvalues in ascending order
    embedder = nn.Linear(size, embedding_size, device=features.device)
    with torch.no_grad():
        embedder.weight.copy_(directions[:, :embedding_size].T)
        embedder.bias.zero_()
    return embedder


def _eigenvectors(products: Float64[Tensor, "f f"]) -> Float64[Tensor, "f f"]:
    """Return the eigenvectors of a symmetric matrix in ascending order of eigenvalues."""
    try:
        vectors: Tensor = torch.linalg.eigh(products).eigenvectors
    except RuntimeError:  # LAPACK may not converge on matrices of very low rank
        shift = 1e-12 * products.diagonal().mean() * torch.eye(len(products)).to(products)
        vectors = torch.linalg.eigh(products + shift).eigenvectors
    return vectors
