"""Modules (embeddings, labels) -> scalar that combine a loss with the pairs or triplets it uses."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.common_functions import indices_tuple_not_supported
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor, nn

from udmlss._checks import as_labels, check_integer
from udmlss.types import Labels

Indices = tuple[Tensor, ...]  # pairs: anchors, positives, anchors, negatives; triplets: anchors, positives, negatives
Miner = Callable[[Tensor, Tensor], Indices]


class MinedLoss(nn.Module):
    """A loss of pytorch-metric-learning with its miner.

    Args:
        loss: Loss of embeddings, labels and indices.
        miner: Miner of embeddings and labels.
    """

    def __init__(self, loss: nn.Module, miner: Miner) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Labels, indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss; `indices_tuple` must be None, because the loss mines its own indices."""
        indices_tuple_not_supported(indices_tuple)
        labels = as_labels(labels, len(embeddings)).to(embeddings.device)
        indices = self.miner(embeddings, labels)
        if max(map(len, indices)) == 1:  # PML 2.9 treats a single pair of each kind as no pairs
            indices = tuple(index.repeat(2) for index in indices)
        loss: Tensor = self.loss(embeddings, labels, indices)
        return loss


def all_pairs(_embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Indices:
    """Return all pairs of the batch; this is the miner of losses that use every pair."""
    indices: Indices = get_all_pairs_indices(labels)
    return indices


class AnchorLoss(nn.Module):
    """Mean, over all embeddings, of a loss of the cosine similarities between an anchor and the batch.

    Args:
        anchor_losses: Function of the similarities (b, b) and of the masks (b, b) of the positives and the negatives of
            each row that returns the losses (b,) of the anchors.
        miner: Function of embeddings and labels that returns pairs (anchors, positives, anchors, negatives).
        settings: Further arguments of `anchor_losses`.
    """

    def __init__(self, anchor_losses: Callable[..., Tensor], miner: Miner, **settings: float) -> None:
        super().__init__()
        self.anchor_losses = anchor_losses
        self.miner = miner
        self.settings = settings
        self.distance = CosineSimilarity()

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Labels, indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss; `indices_tuple` must be None, because the loss mines its own indices."""
        indices_tuple_not_supported(indices_tuple)
        labels = as_labels(labels, len(embeddings)).to(embeddings.device)
        anchors, positives, negative_anchors, negatives = self.miner(embeddings, labels)
        positive = _pair_mask(anchors, positives, len(labels))
        negative = _pair_mask(negative_anchors, negatives, len(labels))
        return self.anchor_losses(self.distance(embeddings), positive, negative, **self.settings).mean()


def _pair_mask(anchors: Int64[Tensor, " p"], others: Int64[Tensor, " p"], n: int) -> Bool[Tensor, "n n"]:
    mask = torch.zeros(n, n, dtype=torch.bool, device=anchors.device)
    mask[anchors, others] = True
    return mask


class SeededMiner(nn.Module):
    """A sampling miner with random numbers of its own instead of torch's global ones.

    The miner runs in float64 on the CPU, because the sampling weights of many dimensions exceed the range of float32.

    Args:
        miner: Any miner of pytorch-metric-learning.
        seed: Seed of the random numbers, at least 0. The number of calls so far is part of the state dict. None uses
            the seed of `fit`, or 0.
    """

    def __init__(self, miner: nn.Module, *, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None:
            check_integer("seed", seed, 0)
        self.miner = miner
        self.seed = seed
        self._default_seed = 0
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def set_default_seed(self, seed: int) -> None:
        """Set the seed that is used if `seed` is None."""
        self._default_seed = seed

    def forward(self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Indices:
        """Return the mined indices."""
        seed = self._default_seed if self.seed is None else int(self.seed)
        generator = np.random.default_rng((seed, int(self.calls)))
        self.calls += 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator.integers(2**63)))
            indices = self.miner(embeddings.detach().cpu().double(), labels.cpu())
        return tuple(index.to(embeddings.device) for index in indices)
