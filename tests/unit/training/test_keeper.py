import pytest
import torch
from torch import nn

from udmlss.training.keeper import Keeper
from udmlss.types import LabelFreeScores


def watch(scores, keep="best", patience=None):
    """Return the part after a run in which the weight was the number of the look, and the keeper."""
    part = nn.Linear(1, 1, bias=False)
    keeper = Keeper([part], keep, patience)
    for step, score in enumerate(scores):
        nn.init.constant_(part.weight, step)
        keeper.see(step, LabelFreeScores(0.5, score, 1.0, score))
    return part, keeper


@pytest.mark.parametrize(("scores", "best"), [([1, 3, 2], 1), ([3, 2, 1], 0), ([1, 2, 3], 2), ([2, 2, 2], 0)])
def test_the_weights_of_the_highest_score_come_back_the_first_of_equals(scores, best):
    part, keeper = watch(scores)
    assert keeper.finish(2) == best
    assert part.weight.item() == best


def test_the_last_weights_stay_if_the_last_are_kept():
    part, keeper = watch([3, 2, 1], keep="last")
    assert keeper.finish(2) == 2
    assert part.weight.item() == 2


@pytest.mark.parametrize(("scores", "out"), [([1, 0], False), ([1, 0, 0], True), ([1, 0, 2], False), ([1, 1, 1], True)])
def test_patience_ends_after_so_many_looks_without_a_higher_score(scores, out):
    assert watch(scores, patience=2)[1].out_of_patience == out


def test_without_patience_it_never_ends():
    assert not watch([1] + [0] * 50)[1].out_of_patience


def test_weights_that_are_kept_are_a_copy():
    part, keeper = watch([1])
    with torch.no_grad():
        part.weight.fill_(7)
    keeper.finish(1)
    assert part.weight.item() == 0
