"""Modules (embeddings, labels) -> scalar that join a loss and the pairs it learns from."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.common_functions import indices_tuple_not_supported
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor, nn

Indices = tuple[Tensor, ...]  # pairs: anchors, positives, anchors, negatives; triplets: anchors, positives, negatives
Miner = Callable[[Tensor, Tensor], Indices]


class MinedLoss(nn.Module):
    """A loss of pytorch-metric-learning on what its miner finds in the batch.

    Args:
        loss: Takes embeddings, labels and indices.
        miner: Takes embeddings and labels.
    """

    def __init__(self, loss: nn.Module, miner: Miner) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"], indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss; indices from elsewhere are refused, as by losses of PML that take none."""
        indices_tuple_not_supported(indices_tuple)
        indices = self.miner(embeddings, labels)
        if max(map(len, indices)) == 1:  # PML 2.9 takes one pair of each kind for none
            indices = tuple(found.repeat(2) for found in indices)
        loss: Tensor = self.loss(embeddings, labels, indices)
        return loss


def all_pairs(_embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Indices:
    """Return every pair of the batch: the miner that leaves none out."""
    indices: Indices = get_all_pairs_indices(labels)
    return indices


class AnchorLoss(nn.Module):
    """The mean over all n embeddings of what each loses by its cosines to its positives and negatives.

    Args:
        of_anchors: From cosines (b b) and masks (b b) of the positives and negatives of each row to losses (b).
        miner: From embeddings and labels to the pairs (anchors, positives, anchors, negatives).
    """

    def __init__(self, of_anchors: Callable[[Tensor, Tensor, Tensor], Tensor], miner: Miner) -> None:
        super().__init__()
        self.of_anchors = of_anchors
        self.miner = miner
        self.distance = CosineSimilarity()

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"], indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss; indices from elsewhere are refused, as by losses of PML that take none."""
        indices_tuple_not_supported(indices_tuple)
        anchors, positives, negative_anchors, negatives = self.miner(embeddings, labels)
        positive = _mask(anchors, positives, len(labels))
        negative = _mask(negative_anchors, negatives, len(labels))
        return self.of_anchors(self.distance(embeddings), positive, negative).mean()


def _mask(anchors: Int64[Tensor, " p"], others: Int64[Tensor, " p"], n: int) -> Bool[Tensor, "n n"]:
    mask = torch.zeros(n, n, dtype=torch.bool, device=anchors.device)
    mask[anchors, others] = True
    return mask


class SeededMiner(nn.Module):
    """A miner that draws, with random numbers of its own instead of torch's global ones, in float64 on the CPU.

    Args:
        miner: Any miner of pytorch-metric-learning.
        seed: Seed of its draws; the number of calls so far is part of the state dict.
    """

    def __init__(self, miner: nn.Module, *, seed: int) -> None:
        super().__init__()
        self.miner = miner
        self.seed = seed
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Indices:
        """Return the indices mined."""
        draws = np.random.default_rng((self.seed, int(self.calls)))
        self.calls += 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(draws.integers(2**63)))
            indices = self.miner(embeddings.detach().cpu().double(), labels.cpu())
        return tuple(found.to(embeddings.device) for found in indices)
