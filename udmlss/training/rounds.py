"""Rounds of training: embed all images, cluster them, and sample batches from the clusters."""

from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from udmlss._checks import check_choice, check_integer, value_error
from udmlss._chunks import Share
from udmlss._threads import one_training_per_process
from udmlss._torch import device_of
from udmlss.clustering.any_labeler import as_labeler, on_accepted_device
from udmlss.clustering.kmeans import cluster_means
from udmlss.clustering.labeler import ClusterPseudoLabeler
from udmlss.dataset import IndexedImages
from udmlss.distributed import (
    SynchronizedErrors,
    is_rank_zero,
    run_with_helpers,
    world_size,
)
from udmlss.inference import InferenceOptions, image_loader
from udmlss.models.pca import PCAEmbedder
from udmlss.neighbors.backends import search_on
from udmlss.neighbors.sharing import share_searches
from udmlss.results import LabelFreeScores
from udmlss.training.identity import check_ranks, describe_loop
from udmlss.training.round import Round
from udmlss.training.snapshot import Snapshot, embed_as_features, score_snapshot, snapshot_of, take_snapshot
from udmlss.training.validation import (
    check_embeddings_folder,
    check_model,
    check_model_and_images,
    check_same_length,
    check_sizes,
    check_start_features,
    in_steps,
)
from udmlss.types import Epochs, Images, Precision, PseudoLabels, UsesSeed

if TYPE_CHECKING:
    from udmlss.models.embedding_model import EmbeddingModel

ClusterOn = Literal["embeddings", "features"]
MAX_STEPS, RELABEL_EVERY = Epochs(8, min_steps=250), Epochs(1, min_steps=10)
_CLUSTERS_PER_BATCH = 8
_LARGEST_SEED = 2**63 - 1  # generators of PyTorch take 64 bits, and views add 1


class Rounds:
    """An iterable over the rounds of a training, for a training loop of one's own.

    Each round embeds all images with the model as it is then, clusters the embeddings, and yields batches of P
    clusters x K images. An iteration that was left early continues with the same round. Under `torchrun` each rank
    iterates over its part of the batches; rank 0 clusters.

    Args:
        model: The model that is trained, an `EmbeddingModel`, compiled or not. It may be replaced between rounds by
            assigning `rounds.model`, for example by a moving average of its weights.
        images: Training images with their augmentations.
        labeler: Computes the pseudo-labels: a `ClusterPseudoLabeler`, a clusterer with scikit-learn's `fit_predict`,
            or a function from embeddings (n, d) to labels (n,). None is `ClusterPseudoLabeler()`, which needs no number
            of clusters.
        cluster_images: The same images in the same order with test-time transforms, for clustering. None clusters
            `images`.
        clusters_per_batch: Number P of clusters in a batch. None means 8, or all clusters in a round with fewer.
        samples_per_cluster: Number K of images per cluster in a batch. The default is the published value.
        views: Number of augmented views of each image in its batch. A batch has P x K x views images. Two views are a
            correct positive pair even if the cluster is wrong; one view is the published value.
        max_steps: Number of optimizer steps in all rounds, or `Epochs`. The default is eight epochs, but at least 250
            steps.
        relabel_every: Number of optimizer steps in a round, or `Epochs`. The default is one epoch, but at least 10
            steps.
        accumulate_grad_batches: Number of batches per optimizer step. A loop of one's own accumulates their gradients.
        cluster_on: What is clustered: "embeddings" or the trunk's "features", scaled to unit length. None clusters
            features in the first round if the embedder is not a `PCAEmbedder`, because it may be random, and otherwise
            embeddings.
        start_features: Features (n, f) of `cluster_images` before training, if `embed(model, images,
            output="features")` computed them already. The first round uses them instead of embedding all images. Under
            `torchrun` those of rank 0 are used.
        label_free: Whether `score` computes label-free scores.
        num_workers: Number of processes that load images. They are started once and hold a copy of the datasets, so
            that later changes of a dataset have no effect. 0 loads images in the main process. None is as in `embed`.
        precision: "bfloat16" and "float16" embed in mixed precision.
        embeddings_folder: Folder for temporary files that hold the embeddings of all images, for datasets whose
            embeddings exceed memory. The files have no name and are removed by the operating system, also if the
            process is killed. None holds embeddings on the model's GPU, if there is one and they take at most an
            eighth of its memory, or in memory. The GPU clusters them in both cases.
        seed: Seed of the batches and of the random transforms, and of the labeler if it has none of its own.

    Attributes:
        accepts_fewer_clusters: Whether a round may have fewer clusters than `clusters_per_batch`.
        n_steps: `max_steps` as a number of optimizer steps.
        steps_per_round: `relabel_every` as a number of optimizer steps.
        start_scores: Label-free scores before training; None if `label_free` is False or before the first round.
        features: Features (n, f) of `cluster_images` after the last step, once `score` has computed them; otherwise
            None. Under `torchrun` only rank 0 holds rows.

    Raises:
        ValueError: Settings that contradict each other or the images. When the iteration starts: settings, images or
            weights differ between ranks. In a later round: all embeddings are equal, or there are fewer clusters than
            a batch needs, or no batch of the round before was sampled.
        TypeError: An argument of a wrong type.
        RuntimeError: When the iteration starts: another thread of this process is training.

    Example:
        >>> model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 16))
        >>> rounds = Rounds(model, torch.rand(40, 3, 8, 8), ClusterPseudoLabeler(4), clusters_per_batch=2, max_steps=3)
        >>> [images.shape for round in rounds for images, labels in round][0]
        torch.Size([20, 3, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        labeler: object = None,
        *,
        cluster_images: Images | None = None,
        clusters_per_batch: int | None = None,
        samples_per_cluster: int = 5,
        views: int = 2,
        max_steps: int | Epochs = MAX_STEPS,
        relabel_every: int | Epochs = RELABEL_EVERY,
        accumulate_grad_batches: int = 1,
        cluster_on: ClusterOn | None = None,
        start_features: Float[Tensor, "n f"] | None = None,
        label_free: bool = False,
        num_workers: int | None = None,
        precision: Precision = "float32",
        embeddings_folder: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        check_model(model)
        self.model: EmbeddingModel = model  # type: ignore[assignment] # or a compiled one
        self.images = IndexedImages(images)
        self.cluster_images = self.images if cluster_images is None else IndexedImages(cluster_images)
        self.labeler = ClusterPseudoLabeler() if labeler is None else as_labeler(labeler)
        if cluster_on is not None:
            check_choice("cluster_on", cluster_on, ("embeddings", "features"))
        check_integer("seed", seed, 0)
        if seed > _LARGEST_SEED:
            raise value_error(f"`seed` must be at most {_LARGEST_SEED}", seed, "Choose a smaller number")
        check_integer("accumulate_grad_batches", accumulate_grad_batches, 1)
        check_same_length(self.images, self.cluster_images)
        check_sizes(self.labeler, len(self.images), clusters_per_batch, samples_per_cluster, views)
        self.accepts_fewer_clusters = clusters_per_batch is None
        self.clusters_per_batch = _CLUSTERS_PER_BATCH if clusters_per_batch is None else int(clusters_per_batch)
        self.samples_per_cluster = int(samples_per_cluster)
        self.views = int(views)
        self.accumulate_grad_batches = int(accumulate_grad_batches)
        self.n_steps = in_steps("max_steps", max_steps, len(self.images), self.images_per_step)
        self.steps_per_round = in_steps("relabel_every", relabel_every, len(self.images), self.images_per_step)
        self.cluster_on = cluster_on
        self.start_features = check_start_features(start_features, len(self.images))
        self.label_free = label_free
        self.options = InferenceOptions(num_workers=num_workers, precision=precision)
        self.loader = image_loader([self.images, self.cluster_images], model, self.options)
        self.embeddings_folder = check_embeddings_folder(embeddings_folder)
        self.seed = int(seed)
        self.are_images_checked = False
        self.start_scores: LabelFreeScores | None = None
        self.features: Float[Tensor, "n f"] | None = None
        if isinstance(self.labeler, UsesSeed):
            self.labeler.set_default_seed(self.seed)
        self._number = 0
        self._steps_before = 0  # optimizer steps of the rounds before the present one
        self._round: Round | None = None
        self._snapshot: Snapshot | None = None

    @property
    def batch_size(self) -> int:
        """Number of images in a batch of one rank."""
        return self.clusters_per_batch * self.samples_per_cluster * self.views

    @property
    def images_per_step(self) -> int:
        """Number of images in the batches of an optimizer step of all ranks."""
        return self.batch_size * self.accumulate_grad_batches * world_size()

    @property
    def settings(self) -> dict[str, object]:
        """The settings that decide the result, for checkpoints to compare."""
        names = ("clusters_per_batch", "samples_per_cluster", "views", "accumulate_grad_batches", "cluster_on", "seed")
        others = {"relabel_every": self.steps_per_round, "precision": self.options.precision}
        return {name: getattr(self, name) for name in names} | others

    @property
    def position(self) -> dict[str, object]:
        """The number of the round and of its batches that were yielded, for ranks to compare."""
        batches_done = 0 if self._round is None else self._round.batches_done
        return {"number of the round": self._number, "batches done in the round": batches_done}

    def __iter__(self) -> Iterator[Round]:
        with one_training_per_process(), self.loader.keep_workers():
            yield from self._rounds()

    def _rounds(self) -> Iterator[Round]:
        if not self.are_images_checked:
            with SynchronizedErrors():
                check_model_and_images(self)
                description = describe_loop(self)
            check_ranks(description)
        while self._round is not None or self._n_batches():
            if self._round is None:
                pseudo_labels = self._cluster(self._snapshot or self._first_snapshot())
                self._snapshot = None  # memory holds the embeddings of one pass at a time
                self._round = Round(self._number, pseudo_labels, self, self._n_batches())
            current, batches_before = self._round, self._round.batches_done
            yield current
            self.end_round()
            if self._round is current and current.batches_done == batches_before:
                rule = "The batches of a round must be sampled before the next round"
                raise value_error(rule, f"none of round {current.number}", "Write `for images, labels in round:`")

    def end_round(self) -> None:
        """End the present round; the loop over the rounds does so by itself."""
        if self._round is not None and self._round.batches_done >= self._n_batches():
            self._steps_before += self._round.batches_done // self.accumulate_grad_batches
            self._number += 1
            self._round = None

    def score(self) -> LabelFreeScores | None:
        """Embed all images and compute label-free scores.

        If no batch is sampled before the next round, that round clusters these embeddings.

        Returns:
            The scores, or None if `label_free` is False.
        """
        if not self.label_free:
            return None
        if self._number == 0 and self._round is None:
            self._snapshot = self._first_snapshot()
            return self.start_scores
        if self._is_finished() and self.cluster_on != "features":
            self.features = embed_as_features(self)
            self._snapshot = snapshot_of(self, self.features, with_features=False)
        else:
            self._snapshot = take_snapshot(self, with_features=self.cluster_on == "features")
        return score_snapshot(self, self._snapshot)

    def discard_snapshot(self) -> None:
        """Discard the embeddings that `score` computed, because the model is about to change."""
        self._snapshot = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state: the round, its clusters, the number of its batches that were yielded, and the labeler's."""
        labeler = self.labeler.state_dict() if hasattr(self.labeler, "state_dict") else None
        return {
            "number": self._number,
            "steps_before": self._steps_before,
            "round": None if self._round is None else self._round.state_dict(),
            "start_scores": None if self.start_scores is None else vars(self.start_scores),
            "labeler": labeler,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state: the iteration continues with the batch after the last one that was yielded."""
        self._number, self._steps_before = state["number"], state["steps_before"]
        self._snapshot, self._round, self.features = None, None, None
        if state["round"] is not None:
            pseudo_labels = PseudoLabels(**state["round"]["pseudo_labels"])
            self._round = Round(self._number, pseudo_labels, self, self._n_batches())
            self._round.batches_done = state["round"]["batches_done"]
        scores = state["start_scores"]
        self.start_scores = None if scores is None else LabelFreeScores(**scores)
        if state["labeler"] is not None:
            self.labeler.load_state_dict(state["labeler"])  # type: ignore[attr-defined] # it had a state_dict

    def _n_batches(self) -> int:
        return max(0, min(self.steps_per_round, self.n_steps - self._steps_before)) * self.accumulate_grad_batches

    def _first_snapshot(self) -> Snapshot:
        """Return the embeddings for the first round of this iteration, which may be a later round if it is resumed."""
        with_features = self._clusters_features()
        if self.start_features is None or self._number > 0:
            snapshot = take_snapshot(self, with_features=with_features)
        else:
            # only rank 0 holds rows of snapshots
            features = self.start_features if is_rank_zero() else self.start_features[:0]
            snapshot = snapshot_of(self, features, with_features=with_features)
        if self.label_free and self._number == 0:
            self.start_scores = score_snapshot(self, snapshot)
        return snapshot

    def _clusters_features(self) -> bool:
        if self.cluster_on is None:
            return self._number == 0 and not isinstance(self.model.embedder, PCAEmbedder)
        return self.cluster_on == "features"

    def _is_finished(self) -> bool:
        """Return whether all optimizer steps were taken."""
        steps = 0 if self._round is None else self._round.batches_done // self.accumulate_grad_batches
        return self._steps_before + steps >= self.n_steps

    def _cluster(self, snapshot: Snapshot) -> PseudoLabels:
        with search_on(device_of(self.model)):
            return run_with_helpers(lambda share: self._label(snapshot, share), self.embeddings_folder)

    def _label(self, snapshot: Snapshot, share: Share | None) -> PseudoLabels:
        embeddings = snapshot.embeddings
        rows = embeddings if snapshot.features is None or not self._clusters_features() else snapshot.features
        with share_searches(share):
            pseudo = self.labeler.label(on_accepted_device(rows, self.labeler))
        if rows is embeddings:
            return pseudo
        # losses with parameters per cluster need centers in the space of the embeddings
        return replace(pseudo, centers=cluster_means(embeddings, pseudo.labels, pseudo.n_clusters).cpu())
