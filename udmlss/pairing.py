"""Features to the image that each image shares a pair with: itself, or its nearest neighbour."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from udmlss import metrics
from udmlss._checks import check_embeddings, check_within


def pair_with_neighbors(features: Float[Tensor, "n f"], *, share: float = 0.5, seed: int = 0) -> Int64[Tensor, " n"]:
    """Draw for each image the image that its second view is taken of: its nearest neighbour, or else itself.

    Draw anew in every pass over the data, with features embedded anew and another seed.

    Args:
        features: Features or embeddings of all images, of any length: similarity is the cosine.
        share: Probability of the neighbour. Default as published: 0.5. With 1 the nearest neighbours come back, and
            none is drawn with 0.
        seed: Seed of the draw.

    Returns:
        The index of the other image, or the image's own.

    Raises:
        ValueError: Fewer than two images, features that are not finite, or a share outside 0..1.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> pair_with_neighbors(features, share=1)
        tensor([1, 0, 3, 2])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091
    """
    check_within("share", share, 0, 1)
    check_embeddings(features, "features")
    own = torch.arange(len(features), device=features.device)
    drawn = torch.rand(len(features), generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(drawn.to(features.device), metrics.nearest(features, 1)[:, 0], own)
