"""Features to a first embedder, so that training begins with what the trunk knows."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_embeddings, value_error
from udmlss._chunks import row_slices


def embedder_from_features(features: Float[Tensor, "n f"], embedding_size: int) -> nn.Linear:
    """Return a linear embedder that keeps as much of the cosines between features as so few dimensions can.

    A new embedder is a random projection: it loses some of what a pretrained trunk knows, and at the learning rate of
    new layers training loses more. This one projects onto the main directions of the features; train it at the trunk's
    learning rate.

    Args:
        features: The trunk's features of the training images, of any length, in memory or mapped from a file.
        embedding_size: Dimensions d of the embeddings, at most f.

    Returns:
        A layer (b f) to (b d) with orthonormal rows and no offset, on the features' device.

    Raises:
        ValueError: An `embedding_size` below 1 or above f; features that are not finite or no matrix.

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
    if not 1 <= embedding_size <= size:
        found = f"features of {size} dimensions"
        raise value_error(
            f"`embedding_size={embedding_size}` must lie between 1 and theirs", found, f"Use at most {size}"
        )
    unit = (functional.normalize(features[rows].detach().double()) for rows in row_slices(features))
    products = sum((part.T @ part for part in unit), start=features.new_zeros(size, size, dtype=torch.float64))
    directions = torch.linalg.eigh(products).eigenvectors.flip(1)  # eigenvalues rise
    embedder = nn.Linear(size, embedding_size, device=features.device)
    with torch.no_grad():
        embedder.weight.copy_(directions[:, :embedding_size].T)
        embedder.bias.zero_()
    return embedder
