import torch

from udmlss import PseudoLabels
from udmlss.training.progress import Progress
from udmlss.types import LabelFreeScores, StepReport


def progress(labels, *, agreement=None, latest=None, step=(0.5, 0.5, None, None, None)):
    labels = torch.tensor(labels)
    pseudo = PseudoLabels(labels, None, labels[labels >= 0].bincount(), agreement)
    return Progress(steps=[StepReport(*step)], pseudo=pseudo, latest=latest)


def test_the_bar_says_only_what_is_known():
    assert str(progress([0, 0, 0, 1])) == "loss 0.500, 2 clusters of 1 to 3"


def test_the_bar_says_what_a_run_is_steered_by():
    latest = LabelFreeScores(self_retrieval=0.8, shared_neighbors=0.5, effective_rank=90.4, spread=0.75)
    shown = str(progress([0, 1, 1, -1], agreement=0.914, latest=latest, step=(1.25, 1, 0.25, 0.3, 0.125)))
    assert shown == (
        "loss 1.250, turns 30% (chance 25%), auxiliary 0.125, 2 clusters of 1 to 2, 1 left out, agreement 0.91, "
        "self-retrieval 80%, rank 90, score 0.625"
    )
