"""The result of a run, in figures and in words."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from udmlss import FitResult, LabelFreeScores, PseudoLabels, RoundReport
from udmlss.backbones import Backbone
from udmlss.cli.messages import columns, count, duration, short_path

_FILES = {
    "report.html": "clusters, neighbors and curves; open it in a browser",
    "images.parquet": "path, cluster, its reliability and nearest neighbors of each image",
    "embeddings.npy": "one row of unit length per image, in the order of images.parquet",
    "history.csv": "losses and scores of each round",
    "model": "the trained model",
}

_SMALL_GAIN = 0.01
_LISTED_ROUNDS = 8  # of longer trainings the first and last scores are printed


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """The result of `train`; `print` shows it in words.

    Attributes:
        folder: The folder of the run.
        n_images: Number of images.
        cluster_sizes: Number of images in each cluster.
        start: Label-free scores before training.
        history: One report per round.
        weights_step: The optimizer step after which the model had its weights; 0 is before training.
        ignores_colors: Whether the embeddings ignore the colors of images.
        ignores_orientation: Whether they ignore rotations of images by multiples of 90 degrees.
    """

    folder: Path
    n_images: int
    cluster_sizes: tuple[int, ...]
    start: LabelFreeScores
    history: tuple[RoundReport, ...]
    weights_step: int
    ignores_colors: bool = False
    ignores_orientation: bool = False

    @classmethod
    def of(cls, folder: Path, result: FitResult, pseudo_labels: PseudoLabels, backbone: Backbone) -> "TrainedRun":
        """Collect the results of `fit` and of the last clustering."""
        assert result.start is not None  # noqa: S101 (`BestWeights` needs the scores)
        sizes = tuple(pseudo_labels.sizes.tolist())
        return cls(
            folder,
            len(pseudo_labels.labels),
            sizes,
            result.start,
            result.history,
            result.weights_step,
            backbone.ignores_colors,
            backbone.ignores_orientation,
        )

    @classmethod
    def from_dict(cls, folder: Path, values: Mapping[str, Any]) -> "TrainedRun":
        """Create the result from the values that `as_dict` returned."""
        return cls(
            folder,
            values["n_images"],
            tuple(values["cluster_sizes"]),
            LabelFreeScores(**values["start"]),
            tuple(RoundReport.from_dict(each) for each in values["history"]),
            values["weights_step"],
            values.get("ignores_colors", False),
            values.get("ignores_orientation", False),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result, without the folder, as values that can be written as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    @property
    def scores(self) -> list[float]:
        """The label-free score before training and after each round."""
        return [self.start.score, *(each.label_free.score for each in self.history if each.label_free is not None)]

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.folder)!r}, n_images={self.n_images}, n_clusters={len(self.cluster_sizes)})"

    def __str__(self) -> str:
        files = [
            (short_path(self.folder / name), text) for name, text in _FILES.items() if (self.folder / name).exists()
        ]
        search = f"Search it with: udmlss search {shlex.quote(short_path(self.folder))} IMAGE"
        return "\n\n".join([self.describe(), columns(files), search])

    def describe(self) -> str:
        """Describe the result of the training in sentences."""
        steps, seconds = self.history[-1].step, sum(each.seconds for each in self.history)
        before, *after = [f"{score:.3f}" for score in self.scores]
        if len(after) > _LISTED_ROUNDS:
            after[2:-2] = ["..."]
        length = f"Trained for {count(steps, 'step')} in {count(len(self.history), 'round')}, {duration(seconds)}."
        score = f"Label-free score: {before} before training, {', '.join(after)} after the rounds."
        return "\n".join([length, score, self._verdict(steps), *self._ignored(), self._clusters()])

    def _ignored(self) -> list[str]:
        ignored = ["colors"] * self.ignores_colors + ["orientation"] * self.ignores_orientation
        return [f"The embeddings ignore the {' and the '.join(ignored)} of the images."] if ignored else []

    def _verdict(self, steps: int) -> str:
        if self.weights_step == 0:
            return (
                "The model has the weights of step 0: training did not improve the score. "
                "The embeddings are those of the pretrained backbone."
            )
        step = "the last step" if self.weights_step == steps else f"step {self.weights_step}"
        gain = max(self.scores) - self.scores[0]
        if gain < _SMALL_GAIN:
            return f"The model has the weights of {step}: training hardly changed the score."
        return (
            f"The model has the weights of {step}, which have the highest score: training improved it by {gain:.3f}.\n"
            "The score is only an indication, so look at the report."
        )

    def _clusters(self) -> str:
        sizes, n_unassigned = self.cluster_sizes, self.n_images - sum(self.cluster_sizes)
        found = f"{count(len(sizes), 'cluster')} of {min(sizes):,} to {count(max(sizes), 'image')}"
        return f"{found}; {count(n_unassigned, 'image')} in no cluster." if n_unassigned else f"{found}."
