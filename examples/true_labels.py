"""The labeler that knows the answer, for the upper bound: what perfect clusters would give."""

from torch import Tensor

from udmlss import PseudoLabels


class TrueLabels:
    """Gives the true labels in every round, whatever the embeddings.

    Args:
        labels: Class of each training image, from 0.
    """

    def __init__(self, labels: Tensor) -> None:
        self.pseudo = PseudoLabels(labels, None, labels.bincount())
        self.n_clusters = self.pseudo.n_clusters

    def label(self, _embeddings: Tensor) -> PseudoLabels:
        return self.pseudo
