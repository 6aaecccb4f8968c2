"""Results of training and evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from udmlss.types import PseudoLabels

StopReason = Literal["max_steps", "callback", "interrupt"]


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The scalar loss and its two terms: `total = metric + rotation_weight * rotation`."""

    total: Float[Tensor, ""]
    metric: Float[Tensor, ""]
    rotation: Float[Tensor, ""]


@dataclass(frozen=True)
class LabelFreeScores:
    """Scores of embeddings that need no labels.

    Attributes:
        self_retrieval: Fraction of augmented views whose nearest image is the image they are a view of; in 0..1.
        shared_neighbors: Mean fraction of the 20 nearest images that an image has in common with an augmented view of
            it; in 0..1.
        effective_rank: Effective number of dimensions of the embeddings, in 1..d. It falls quickly if they collapse.
        spread: Logarithm of the effective rank, divided by the logarithm of its largest possible value; in 0..1.
    """

    self_retrieval: float
    shared_neighbors: float
    effective_rank: float
    spread: float

    @property
    def score(self) -> float:
        """Mean of `shared_neighbors` and `spread`, in 0..1, by which `BestWeights` and `EarlyStopping` choose.

        `shared_neighbors` is high if an image and its augmented view have the same neighbors. `spread` is low if all
        embeddings are similar, so that the mean does not prefer a collapsed model.

        References:
            Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere.
            Wang, Isola. 2020. https://arxiv.org/abs/2005.10242. The score follows its idea with other measures.
        """
        return (self.shared_neighbors + self.spread) / 2


@dataclass(frozen=True)
class StepReport:
    """Measurements of one optimizer step.

    Attributes:
        step: Optimizer steps since the start of the run, this one included.
        loss: Total loss.
        metric_loss: Metric loss.
        rotation_loss: Rotation loss, or None without a rotation head.
        rotation_accuracy: Accuracy of the predicted rotations in 0..1, or None without a rotation head.
        auxiliary_loss: Auxiliary loss, or None without one.
    """

    step: int
    loss: float
    metric_loss: float
    rotation_loss: float | None
    rotation_accuracy: float | None
    auxiliary_loss: float | None


@dataclass(frozen=True, repr=False)
class RoundReport:
    """Measurements of one round: one clustering and the optimizer steps that follow it.

    Attributes:
        round: Number of the round, from 0.
        step: Optimizer steps since the start of the run, including those of this round.
        n_clusters: Number of clusters.
        n_unassigned: Number of images without a cluster.
        largest_cluster: Fraction of all images that are in the largest cluster, in 0..1.
        smallest_cluster: Fraction of all images that are in the smallest cluster, in 0..1.
        agreement: Adjusted Rand index with the clusters of the previous round; None in the first round.
        loss: Mean total loss of the steps.
        metric_loss: Mean metric loss.
        rotation_loss: Mean rotation loss, or None without a rotation head. Chance is ln 4 = 1.386.
        rotation_accuracy: Mean accuracy of the predicted rotations, or None without a rotation head. Chance is 0.25.
        auxiliary_loss: Mean auxiliary loss, which `loss` includes, or None without one.
        label_free: Label-free scores after the steps; None if nothing needs them, or if the round was interrupted.
        seconds: Wall time of the round: embedding, clustering, training and scoring.
    """

    round: int
    step: int
    n_clusters: int
    n_unassigned: int
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RoundReport":
        """Return the report of which `dataclasses.asdict` returned the values."""
        scores = values["label_free"]
        return cls(**{**values, "label_free": None if scores is None else LabelFreeScores(**scores)})

    def __repr__(self) -> str:
        figures = {"agreement": self.agreement, "score": None if self.label_free is None else self.label_free.score}
        listed = "".join(f", {name}={value:.3f}" for name, value in figures.items() if value is not None)
        return (
            f"RoundReport(round={self.round}, step={self.step}, loss={self.loss:.4f}, "
            f"n_clusters={self.n_clusters}{listed}, seconds={self.seconds:.1f})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """The result of `fit`. The model, the rotation head and the criterion were trained in place.

    Attributes:
        history: One report per round, in order. The last report of an interrupted run may cover fewer steps.
        pseudo_labels: The clusters of the last round, or None if no clustering was finished.
        stop_reason: "max_steps" if all steps were taken, "callback" if a callback returned True, "interrupt" if the
            user pressed Ctrl-C.
        start: Label-free scores before training; None if nothing needs them.
        weights_step: The optimizer step whose weights the model has; 0 is before training. Averaged weights and an
            embedder that `fit` recomputed belong to the step that they were computed after.
        features: Features (n, f) of `cluster_images` by the trained trunk, if the label-free scores of the last round
            needed them and the model has the weights of that round; otherwise None. They are in memory or on the
            model's device. Under `torchrun` only rank 0 holds rows.
    """

    history: tuple[RoundReport, ...]
    pseudo_labels: PseudoLabels | None
    stop_reason: StopReason
    start: LabelFreeScores | None
    weights_step: int
    features: Float[Tensor, "n f"] | None = None

    @property
    def label_free(self) -> LabelFreeScores | None:
        """Label-free scores after step `weights_step`, with the embedder as trained; None if not computed."""
        scores = {0: self.start} | {report.step: report.label_free for report in self.history}
        return scores.get(self.weights_step)

    def __repr__(self) -> str:
        n_steps = self.history[-1].step if self.history else 0
        counts = f"{len(self.history)} rounds, {n_steps} steps"
        lines = [f"FitResult({counts}, stop_reason={self.stop_reason!r}, weights_step={self.weights_step})"]
        if self.history:
            lines += [f"  first: {self.history[0]!r}", f"  last:  {self.history[-1]!r}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Scores:
    """Scores of embeddings with known classes; all are in 0..1, and higher is better.

    Attributes:
        recall_at: For each k the fraction of queries with an item of their class among the k nearest.
        map_at_r: Mean average precision at R (Musgrave et al. 2020).
        r_precision: Fraction of the R nearest items that have the class of the query, where R is the class's size.
        nmi: Normalized mutual information of k-means clusters and classes.
        ami: Adjusted mutual information of the same, which corrects for chance.
    """

    recall_at: dict[int, float]
    map_at_r: float
    r_precision: float
    nmi: float
    ami: float

    def __str__(self) -> str:
        recalls = "  ".join(f"R@{k} {value:5.1%}" for k, value in self.recall_at.items())
        others = f"MAP@R {self.map_at_r:5.1%}  RP {self.r_precision:5.1%}  NMI {self.nmi:5.1%}  AMI {self.ami:5.1%}"
        return f"{recalls}  {others}"
