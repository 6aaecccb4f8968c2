"""A labeler that returns the true labels, for the upper bound of a comparison.

A module of reproduce.py, not a program.
"""

from torch import Tensor

from udmlss import PseudoLabels


class TrueLabels:
    """A labeler that returns the same labels in every round.

    Args:
        labels: Class of each training image, from 0 and without gaps.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = PseudoLabels.from_labels(labels).labels

    def label(self, embeddings: Tensor) -> PseudoLabels:
        return PseudoLabels.from_labels(self.labels, embeddings)
