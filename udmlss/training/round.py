"""One round of training: a clustering and its batches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int64
from torch import Tensor

from udmlss._torch import device_of, to_device
from udmlss.distributed import rank, world_size
from udmlss.sampler import PseudoLabelSampler
from udmlss.types import PseudoLabels

if TYPE_CHECKING:
    from udmlss.training.rounds import Rounds


class Round:
    """One clustering and the batches that are sampled from it.

    Iterating yields `(images, labels)`: images (b, c, h, w) on the model's device and their pseudo-labels (b,). An
    iteration that was left early continues with the next batch.

    Attributes:
        number: Number of the round, from 0.
        pseudo_labels: The clusters.
        batches_done: Number of batches that were yielded.
    """

    def __init__(self, number: int, pseudo_labels: PseudoLabels, rounds: "Rounds", n_batches: int) -> None:
        self.number = number
        self.pseudo_labels = pseudo_labels
        self.batches_done = 0
        self._rounds = rounds
        self._n_batches = n_batches

    def __len__(self) -> int:
        """Return the number of batches of the round, including those that were yielded."""
        return self._n_batches

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        model, labels = self._rounds.model, self.pseudo_labels.labels
        for images, indices in self._batches():
            self.batches_done += 1
            self._rounds.discard_snapshot()
            yield to_device(images, model), labels[indices].to(device_of(model))

    def state_dict(self) -> dict[str, Any]:
        """Return the clusters and the number of batches that were yielded."""
        pseudo_labels = vars(self.pseudo_labels)
        return {"pseudo_labels": dict(pseudo_labels), "batches_done": self.batches_done}

    def _clusters_per_batch(self) -> int:
        wanted = self._rounds.clusters_per_batch
        if not self._rounds.accepts_fewer_clusters:
            return wanted
        pseudo_labels = self.pseudo_labels
        groups = pseudo_labels.labels if pseudo_labels.coarse_labels is None else pseudo_labels.coarse_labels
        is_sampled = (pseudo_labels.labels >= 0) & (pseudo_labels.sizes > 1)[pseudo_labels.labels]
        return min(wanted, max(2, len(groups[is_sampled].unique())))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Load the batches that were not yielded yet, as images and indices."""
        rounds = self._rounds
        sampler = PseudoLabelSampler(
            self.pseudo_labels.labels,
            self._clusters_per_batch(),
            rounds.samples_per_cluster,
            coarse_labels=self.pseudo_labels.coarse_labels,
            views=rounds.views,
            n_batches=self._n_batches,
            seed=rounds.seed,
            rank=rank(),
            world_size=world_size(),
        )
        sampler.set_epoch(self.number)
        key = (rounds.seed, self.number, rank())
        return rounds.loader.batches(rounds.images, list(sampler), key, start=self.batches_done)
