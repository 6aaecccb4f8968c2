"""Batch normalization at the end of an embedder."""

from torch import nn

from udmlss._checks import check_integer


class BatchNormNeck(nn.BatchNorm1d):
    """Batch normalization of features or embeddings before they are scaled to unit length, with the shift fixed at 0.

    It is the embedder itself, as in the publications, or the last layer of one. Normalized columns have mean 0, so that
    embeddings do not lie in a narrow cone. `fit(freeze_batch_norm=True)` fixes the statistics of a pretrained trunk and
    trains those of a new neck. A later `fit` takes the neck as pretrained and fixes its statistics too.

    Args:
        num_features: Dimension f of the features, at least 1.

    Raises:
        ValueError: `num_features` is below 1. In training mode: a batch has one row.

    Example:
        >>> from udmlss.models import BatchNormNeck
        >>> model = EmbeddingModel(nn.Flatten(), BatchNormNeck(192))
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 192])

    References:
        Bag of Tricks and a Strong Baseline for Deep Person Re-Identification. Luo et al. 2019.
        https://arxiv.org/abs/1903.07071
    """

    def __init__(self, num_features: int) -> None:
        check_integer("num_features", num_features, 1)
        super().__init__(int(num_features))
        self.bias.requires_grad_(False)  # noqa: FBT003 (the signature of torch)
