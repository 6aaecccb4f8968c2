"""Labelers for everything that `fit` and `Rounds` accept as one."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from udmlss._checks import as_labels, type_error
from udmlss.clustering.clusterer import has_fit_predict
from udmlss.clustering.labeler import ClusterPseudoLabeler
from udmlss.types import Labeler, PseudoLabels


def as_labeler(labeler: Any) -> Labeler:  # noqa: ANN401 (anything may be passed as a labeler)
    """Return a labeler for everything that `fit` and `Rounds` accept as one.

    Args:
        labeler: An object with `label(embeddings)`, a clusterer with scikit-learn's `fit_predict`, or a function of
            embeddings. `label` and the function return `PseudoLabels` or labels (n,).

    Raises:
        TypeError: `labeler` is none of these.
    """
    if isinstance(labeler, ClusterPseudoLabeler):
        return labeler
    if not isinstance(labeler, type):
        if callable(getattr(labeler, "label", None)):
            return _LabelerAdapter(labeler)
        if has_fit_predict(labeler) or callable(labeler):
            return ClusterPseudoLabeler(clusterer=labeler)
    raise type_error(
        "`labeler` must have `label(embeddings)` or scikit-learn's `fit_predict`, or be a function of embeddings",
        f"{labeler!r}",
        "Pass an instance, such as ClusterPseudoLabeler(100)",
    )


def on_accepted_device(embeddings: Float[Tensor, "n d"], labeler: Labeler) -> Float[Tensor, "n d"]:
    """Return embeddings on the CPU for a labeler or a function that users wrote, which may call NumPy."""
    is_written_here = isinstance(labeler, ClusterPseudoLabeler) and not callable(labeler.clusterer)
    return embeddings if is_written_here else embeddings.cpu()


class _LabelerAdapter:
    """A labeler around one that may return bare labels in place of `PseudoLabels`.

    Args:
        labeler: An object with `label(embeddings)`. Its state and its default seed remain accessible.
    """

    def __init__(self, labeler: Any) -> None:  # noqa: ANN401 (its `label` may return labels of any type)
        self.labeler = labeler
        for name in ("state_dict", "load_state_dict", "set_default_seed"):
            if hasattr(labeler, name):
                setattr(self, name, getattr(labeler, name))

    def label(self, embeddings: Float[Tensor, "n d"]) -> PseudoLabels:
        """Return the labels of the wrapped labeler as `PseudoLabels`."""
        found = self.labeler.label(embeddings)
        is_pseudo_labels = isinstance(found, PseudoLabels)
        labels = as_labels(found.labels if is_pseudo_labels else found, len(embeddings), "labels of the labeler")
        return found if is_pseudo_labels else PseudoLabels.from_labels(labels, embeddings)
