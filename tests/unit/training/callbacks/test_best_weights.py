from dataclasses import replace
from types import SimpleNamespace

import pytest
from short_training import Augmented
from torch import nn

from udmlss import BestWeights, IndexedImages, RoundReport
from udmlss.image_loader import ImageLoader
from udmlss.results import LabelFreeScores

REPORT = RoundReport(0, 1, 10, 0, 0.2, 0.05, None, 1.0, 1.0, None, None, None, label_free=None, seconds=0.1)


def scores(score):
    return LabelFreeScores(0.5, score, 5.0, score)


def start(callback, model, start_score):
    """Return a run whose model has the weight 0."""
    nn.init.zeros_(model.weight)
    images = IndexedImages(Augmented())
    rounds = SimpleNamespace(n_steps=9, steps_per_round=3, images=images, cluster_images=images, model=model)
    rounds.start_scores, rounds.loader = scores(start_score), ImageLoader([images])
    run = SimpleNamespace(model=model, modules={"model": model}, rounds=rounds, weights_step=None)
    callback.on_start(run)
    return run


def end_round(callback, model, number, score):
    """End a round after which the weight is the number of the round."""
    nn.init.constant_(model.weight, number)
    callback.on_round(replace(REPORT, round=number - 1, step=number, label_free=scores(score)))


@pytest.mark.parametrize(("found", "best"), [([1, 3, 2], 1), ([3, 2, 1], 0), ([1, 2, 3], 2), ([2, 2, 2], 0)])
def test_weights_of_the_highest_score_are_restored_the_first_of_equal_ones(found, best):
    model, callback = nn.Linear(1, 1, bias=False), BestWeights()
    run = start(callback, model, found[0])
    for number, score in enumerate(found[1:], 1):
        end_round(callback, model, number, score)
    callback.on_end(run)
    assert model.weight.item() == run.weights_step == best


def test_state_restores_the_best_weights():
    model, other_model = (nn.Linear(1, 1, bias=False) for _ in range(2))
    callback, other = BestWeights(), BestWeights()
    start(callback, model, 1)
    end_round(callback, model, 1, 3)
    run = start(other, other_model, 1)
    other.load_state_dict(callback.state_dict())
    end_round(other, other_model, 2, 2)
    other.on_end(run)
    assert other_model.weight.item() == run.weights_step == 1


def test_second_run_starts_from_scratch():
    model, callback = nn.Linear(1, 1, bias=False), BestWeights()
    run = start(callback, model, 1)
    end_round(callback, model, 5, 9)
    callback.on_end(run)
    run = start(callback, model, 1)
    end_round(callback, model, 2, 3)
    callback.on_end(run)
    assert model.weight.item() == run.weights_step == 2


def test_weights_of_an_unscored_round_are_not_compared():
    model, callback = nn.Linear(1, 1, bias=False), BestWeights()
    run = start(callback, model, 1)
    callback.on_round(REPORT)
    callback.on_end(run)
    assert run.weights_step == 0
