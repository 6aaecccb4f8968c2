"""The frozen values that cross stages, and the protocols at the seams."""

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
What = Literal["embeddings", "features"]
LaterRounds = Literal["embeddings", "features", "remembered"]
Ended = Literal["max_steps", "patience", "callback", "interrupt"]
Keep = Literal["last", "best"]


@runtime_checkable
class Images(Protocol):
    """Any map-style data set of images: a `torch.utils.data.Dataset`, or a tensor (n c h w).

    An item is an image tensor (c h w), or a tuple or dict that begins with one; what follows is ignored.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...  # noqa: ANN401 (an item may be of any type)


@dataclass(frozen=True)
class Passes:
    """A length of training counted in passes over the data, for `fit`: `Passes(2)` draws as many images as two hold."""

    count: float

    def in_steps(self, n_images: int, batch_size: int) -> int:
        """Return the number of optimiser steps, rounded up."""
        return ceil(round(self.count * n_images / batch_size, 6))  # 1.1 * 10 is a little over 11


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The clusters of one round.

    Attributes:
        labels: Cluster of each image in 0..k-1, or -1 for an image that is left out of training.
        centroids: Mean embedding of each cluster, or None where a labeler knows none.
        sizes: Number of images in each cluster, all above zero.
        agreement: Adjusted Rand index with the round before, over the images that both have in a cluster:
            1 for the same clusters, 0 for chance. None in the first round, and where fewer than two images are in both.
    """

    labels: Int64[Tensor, " n"]
    centroids: Float[Tensor, "k d"] | None
    sizes: Int64[Tensor, " k"]
    agreement: float | None = None

    @property
    def n_clusters(self) -> int:
        """Number of clusters k."""
        return len(self.sizes)

    @property
    def n_left_out(self) -> int:
        """Number of images in no cluster."""
        return int((self.labels < 0).sum())


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The scalar loss and its two parts: `total = metric + rotation_weight * rotation`."""

    total: Float[Tensor, ""]
    metric: Float[Tensor, ""]
    rotation: Float[Tensor, ""]


@dataclass(frozen=True)
class LabelFreeScores:
    """How good embeddings look without any label.

    Attributes:
        self_retrieval: Share of augmented views that find, among all images, the image they are of; in 0..1.
        shared_neighbors: Share of the 20 other images most similar to an image that are so to an augmented view of it
            as well; in 0..1.
        effective_rank: How many directions the embeddings fill, from 1 to d; falling fast, they collapse.
        spread: How evenly they fill the directions there are: the logarithm of the effective rank over that of the
            highest it could be, in 0..1.
    """

    self_retrieval: float
    shared_neighbors: float
    effective_rank: float
    spread: float

    @property
    def score(self) -> float:
        """Mean of shared neighbours and spread, in 0..1: what `fit` keeps weights and stops by.

        What is similar stays similar in another view, and not because all is: alignment and uniformity, of which
        both are needed.

        References:
            Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere.
            Wang, Isola. 2020. https://arxiv.org/abs/2005.10242. The two measures here are others.
        """
        return (self.shared_neighbors + self.spread) / 2


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step measured; the rotation figures are None without a head, the last without an auxiliary."""

    loss: float
    metric_loss: float
    rotation_loss: float | None
    rotation_accuracy: float | None
    auxiliary_loss: float | None


@dataclass(frozen=True)
class RoundReport:
    """What one round of `fit` did: one clustering and the optimiser steps after it.

    Attributes:
        round: Number of the round, from 0.
        step: Optimiser steps done since the start of `fit`, this round's included.
        n_clusters: Number of clusters.
        n_left_out: Number of images in no cluster.
        largest_cluster: Share of all images that the largest cluster holds, in 0..1.
        smallest_cluster: Share of all images that the smallest cluster holds.
        agreement: Adjusted Rand index with the round before; None in the first round, or without images in both.
        loss: Mean total loss over the round's steps.
        metric_loss: Mean metric loss.
        rotation_loss: Mean rotation loss, None without a rotation head. Chance is ln 4 = 1.386.
        rotation_accuracy: Share of turned images whose turn was named, None without a head. Chance is 0.25.
        auxiliary_loss: Mean of what the auxiliary gave, which `loss` includes; None without one.
        label_free: How good the embeddings look after the round's steps; None if the round was cut short, and where
            embeddings are remembered and not looked at.
        seconds: Wall time of the round: clustering, training, embedding and judging.
    """

    round: int
    step: int
    n_clusters: int
    n_left_out: int
    largest_cluster: float
    smallest_cluster: float
    agreement: float | None
    loss: float
    metric_loss: float
    rotation_loss: float | None
    rotation_accuracy: float | None
    auxiliary_loss: float | None
    label_free: LabelFreeScores | None
    seconds: float


@dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit` returns; the model, the head and the criterion were trained in place.

    Attributes:
        history: One report per round, in order; of an interrupted run the last one may cover fewer steps.
        pseudo_labels: The clusters of the last round, centroids as embeddings. None if none was finished.
        ended: Why training ended: all steps done, no better score for `patience` rounds, a callback returned True, or
            the keyboard.
        start: How good the embeddings looked before training. None if not even that was measured.
        kept_step: The optimiser step after which the model had the weights that it has now; 0 is before training.
    """

    history: tuple[RoundReport, ...]
    pseudo_labels: PseudoLabels | None
    ended: Ended
    start: LabelFreeScores | None
    kept_step: int

    @property
    def label_free(self) -> LabelFreeScores | None:
        """How good the embeddings of the weights that were kept look; None if they were not measured."""
        measured = {0: self.start} | {report.step: report.label_free for report in self.history}
        return measured[self.kept_step]


@dataclass(frozen=True)
class Scores:
    """How well embeddings retrieve and group known classes; shares in 0..1, higher is better.

    Attributes:
        recall_at: For each k the share of queries with an item of their class among the k nearest.
        map_at_r: Mean average precision at R (Musgrave et al. 2020).
        r_precision: Share of the R nearest that are of the query's class, R being the class's size.
        nmi: Normalised mutual information of k-means clusters and classes.
        ami: The same, corrected for chance.
    """

    recall_at: dict[int, float]
    map_at_r: float
    r_precision: float
    nmi: float
    ami: float

    def __str__(self) -> str:
        recalls = "  ".join(f"R@{k} {share:5.1%}" for k, share in self.recall_at.items())
        return f"{recalls}  MAP@R {self.map_at_r:5.1%}  NMI {self.nmi:5.1%}"


@runtime_checkable
class Labeler(Protocol):
    """Turns embeddings into pseudo-labels, round after round; `ClusterPseudoLabeler` is one."""

    def label(self, embeddings: Float[Tensor, "n d"]) -> PseudoLabels:
        """Return the clusters of the embeddings."""
        ...


@runtime_checkable
class FollowsCentroids(Protocol):
    """A metric loss that is told the centroids of every round; `SynthesisRankingLoss` is one.

    Attributes:
        embedding_size: Dimension of the embeddings that it was built for.
    """

    embedding_size: int

    def follow_centroids(self, centroids: Float[Tensor, "k d"] | None) -> None:
        """Take the centroids of a new clustering; None where the labeler knows none."""
        ...


@runtime_checkable
class Callback(Protocol):
    """Runs when a round of `fit` ends; returning True ends the training."""

    def __call__(self, report: RoundReport, /) -> bool | None:
        """Look at the round."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A labeler or callback that remembers something, and so takes part in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers: tensors, numbers, text, and dicts and lists of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Remember that."""
        ...
