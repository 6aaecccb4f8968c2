"""Pseudo-labels, lengths of training, and the protocols of the parts that users may replace."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from udmlss._checks import as_labels, check_embeddings, check_integer, check_number, type_error, value_error
from udmlss._chunks import group_means

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = get_args(Precision)
Output = Literal["embeddings", "features"]
Labels = Shaped[Tensor, "_"] | NDArray[Any] | Sequence[int]


@runtime_checkable
class Images(Protocol):
    """Any map-style dataset of images: a `torch.utils.data.Dataset`, or a tensor (n, c, h, w).

    An item is an image tensor (c, h, w), a sequence whose first element is one, or a dictionary that holds one under
    "image" or "pixel_values". `IndexedImages` reads it under another key. Labels in the items are ignored.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...  # noqa: ANN401 (an item may be of any type)


@dataclass(frozen=True)
class Epochs:
    """A length of training in epochs, such as `fit(..., max_steps=Epochs(2))`.

    The batches of one epoch have as many images in total as the dataset.

    Args:
        count: Number of epochs, above 0; a fraction is allowed.
        min_steps: Least number of optimizer steps, for small datasets, whose epochs have few steps.

    Raises:
        ValueError: `count` is not above 0, or `min_steps` is below 1.
        TypeError: `min_steps` is not an integer.

    Example:
        >>> Epochs(2).in_steps(n_images=1000, batch_size=80)
        25
        >>> Epochs(2, min_steps=100).in_steps(n_images=1000, batch_size=80)
        100
    """

    count: float
    min_steps: int = 1

    def __post_init__(self) -> None:
        check_number("count", self.count, above=0)
        check_integer("min_steps", self.min_steps, 1)

    def in_steps(self, n_images: int, batch_size: int) -> int:
        """Return the number of optimizer steps, rounded up, or `min_steps` if that is more.

        Args:
            n_images: Number of images in an epoch, at least 1.
            batch_size: Number of images per step, at least 1.
        """
        check_integer("n_images", n_images, 1)
        check_integer("batch_size", batch_size, 1)
        steps = ceil(round(self.count * n_images / batch_size, 6))  # 1.1 * 10 is slightly above 11 in floating point
        return max(steps, self.min_steps)


@dataclass(frozen=True, eq=False, repr=False)
class PseudoLabels:
    """The clusters of one round.

    Attributes:
        labels: Cluster of each image in 0..k-1, or -1 for an unassigned image, which is not trained on.
        centers: Mean embedding of each cluster, or None if the labeler does not compute them.
        sizes: Number of images in each cluster, all above zero.
        previous_ids: Id of each cluster in the previous round, or -1 for a cluster that is new. None if there was no
            previous round, or if the labeler does not match ids.
        agreement: Adjusted Rand index between this round and the previous one, over the images that have a cluster in
            both: 1 for equal clusters, 0 for chance. None in the first round.
        reliability: How much more similar each image is to its own cluster than to any other, in -1..1, by
            `udmlss.clustering.label_margins`. Wrong labels have low values. NaN for an image that the clusterer did
            not assign. None if the labeler does not compute it.
        coarse_labels: Coarse cluster of each image, which consists of whole clusters, or -1 for an unassigned image.
            `fit` samples no batch with two clusters of the same coarse cluster, so that their images are not
            negatives of each other. None if any clusters may be in the same batch.

    Raises:
        TypeError: A field is not a tensor, or labels or sizes are not integers.
        ValueError: The fields contradict each other.
    """

    labels: Int64[Tensor, " n"]
    centers: Float[Tensor, "k d"] | None
    sizes: Int64[Tensor, " k"]
    agreement: float | None = None
    reliability: Float[Tensor, " n"] | None = None
    coarse_labels: Int64[Tensor, " n"] | None = None
    previous_ids: Int64[Tensor, " k"] | None = None

    def __post_init__(self) -> None:
        _check_sizes(self.labels, self.sizes)
        _check_centers(self.centers, len(self.sizes))
        if self.agreement is not None:
            check_number("agreement", self.agreement, -1, 1)
        if self.reliability is not None and self.reliability.shape != self.labels.shape:
            rule = f"`reliability` must have shape {tuple(self.labels.shape)}, one number per image"
            raise value_error(rule, f"shape {tuple(self.reliability.shape)}", "Pass one number per image, or None")
        if self.coarse_labels is not None:
            as_labels(self.coarse_labels, len(self.labels), "coarse_labels")
        if self.previous_ids is not None:
            as_labels(self.previous_ids, len(self.sizes), "previous_ids")

    @classmethod
    def from_labels(cls, labels: Labels, embeddings: Float[Tensor, "n d"] | None = None) -> "PseudoLabels":
        """Build pseudo-labels from the cluster of each image.

        Args:
            labels: Cluster of each image: integers in any order and with gaps, which are renumbered to 0..k-1. A
                negative label means that the image is unassigned.
            embeddings: Embeddings of the images. With them the centers are computed, without them they are None.

        Raises:
            TypeError: The labels are not integers, or the embeddings are not a floating-point tensor.
            ValueError: The labels are not one-dimensional, are not one per embedding, or have no cluster, or the
                embeddings are not finite.

        Example:
            >>> PseudoLabels.from_labels([7, 7, 3, -1]).labels
            tensor([ 1,  1,  0, -1])
        """
        column_range = None if embeddings is None else check_embeddings(embeddings)
        found = as_labels(labels, None if embeddings is None else len(embeddings)).cpu()
        assigned = found >= 0
        if not assigned.any():
            rule = "`labels` must assign images to clusters"
            remedy = "Let the clusterer assign more images, for example by a lower minimum size of a cluster"
            raise value_error(rule, f"{len(found)} labels below 0", remedy)
        compact = torch.full_like(found, -1)
        compact[assigned] = found[assigned].unique(return_inverse=True)[1]
        sizes = compact[assigned].bincount()
        if embeddings is None or column_range is None:
            return cls(compact, None, sizes)
        return cls(compact, group_means(embeddings.detach(), compact, len(sizes), column_range.sum_dtype).cpu(), sizes)

    @property
    def n_clusters(self) -> int:
        """Number of clusters k."""
        return len(self.sizes)

    @property
    def n_unassigned(self) -> int:
        """Number of images without a cluster."""
        return int((self.labels < 0).sum())

    def __repr__(self) -> str:
        sizes = f"sizes={int(self.sizes.min())}..{int(self.sizes.max())}"
        agreement = "None" if self.agreement is None else f"{self.agreement:.3f}"
        return (
            f"PseudoLabels(n={len(self.labels)}, n_clusters={self.n_clusters}, {sizes}, "
            f"n_unassigned={self.n_unassigned}, agreement={agreement})"
        )


def _check_sizes(labels: Tensor, sizes: Tensor) -> None:
    for name, value in (("labels", labels), ("sizes", sizes)):
        if not isinstance(value, Tensor):
            remedy = "Use PseudoLabels.from_labels for other types"
            raise type_error(f"`{name}` must be a tensor of integers", type(value).__name__, remedy)
        as_labels(value, value.numel(), name)
    counted = labels[labels >= 0].clamp(max=len(sizes)).bincount()  # larger numbers are an error below
    if len(labels) and int(labels.min()) < -1:
        raise value_error("`labels` must be -1 or above", int(labels.min()), "Use PseudoLabels.from_labels")
    if len(counted) == 0 or not torch.equal(counted, sizes.to(counted)) or not counted.all():
        rule = "`sizes` must be the number of images of each cluster, and clusters must be numbered without gaps"
        found = f"sizes {sizes.tolist()[:8]} for {counted.tolist()[:8]} images in the first clusters"
        raise value_error(rule, found, "Use PseudoLabels.from_labels")


def _check_centers(centers: Tensor | None, n_clusters: int) -> None:
    if centers is None:
        return
    if not isinstance(centers, Tensor):
        raise type_error("`centers` must be a tensor (k, d)", type(centers).__name__, "Use torch.as_tensor")
    if centers.ndim != 2 or len(centers) != n_clusters or not centers.isfinite().all():  # noqa: PLR2004
        rule = f"`centers` must be a finite tensor of {n_clusters} rows, one per cluster"
        raise value_error(rule, f"shape {tuple(centers.shape)}", "Pass the mean embedding of each cluster, or None")


@runtime_checkable
class Labeler(Protocol):
    """Computes pseudo-labels from embeddings, once per round; `ClusterPseudoLabeler` is one."""

    def label(self, embeddings: Float[Tensor, "n d"]) -> PseudoLabels:
        """Return the clusters of the embeddings."""
        ...


@runtime_checkable
class UsesClusterCenters(Protocol):
    """A metric loss that receives the cluster centers of every round; `SynthesisRankingLoss` is one.

    Attributes:
        embedding_size: Dimension d of the embeddings.
    """

    embedding_size: int

    def set_centers(self, centers: Float[Tensor, "k d"] | None) -> None:
        """Set the centers of a new clustering; None if the labeler does not compute them."""
        ...


@runtime_checkable
class UsesSeed(Protocol):
    """A part that samples random numbers and takes the seed of `fit` unless it has one of its own."""

    def set_default_seed(self, seed: int) -> None:
        """Set the seed that is used if the part's own `seed` is None."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A labeler or callback with a state, which checkpoints save."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors, numbers, strings, None, and dictionaries and lists of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state."""
        ...
