from types import SimpleNamespace

import pytest

from udmlss import BestWeights, Checkpoint, EarlyStopping, WeightAverage
from udmlss.training.callbacks.dispatch import Callbacks


def test_checkpoints_are_called_last(tmp_path):
    checkpoint, average, best = Checkpoint(tmp_path), WeightAverage(), BestWeights()
    assert Callbacks([checkpoint, average, print, best]).ordered == [average, print, best, checkpoint]


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        ((), False),
        (print, False),
        ([WeightAverage(), EarlyStopping("agreement")], False),
        (BestWeights(), True),
        ((print, EarlyStopping()), True),
        (SimpleNamespace(on_round=print, needs_label_free=True), True),
    ],
)
def test_label_free_scores_are_needed_if_one_callback_needs_them(callbacks, expected):
    assert Callbacks(callbacks).need_label_free is expected


@pytest.mark.parametrize("callback", [BestWeights, 3, None, SimpleNamespace(on_epoch=print)])
def test_objects_that_are_not_callbacks_are_rejected(callback):
    with pytest.raises(TypeError, match=r"A callback must be a function or an object with one of `on_start`, .*, got "):
        Callbacks([print, callback])


class Interrupted:
    """A callback whose `on_end` is interrupted once."""

    def __init__(self, ended):
        self.ended, self.is_first = ended, True

    def on_start(self, run):
        pass

    def on_end(self, _run):
        if self.is_first:
            self.is_first = False
            raise KeyboardInterrupt
        self.ended.append("interrupted")


class Ended(Interrupted):
    def on_end(self, _run):
        self.ended.append("ended")


def test_an_interrupted_end_is_called_again_and_the_others_once():
    ended = []
    hooks = Callbacks([Ended(ended), Interrupted(ended), Ended(ended)])
    hooks.start(None)
    with pytest.raises(KeyboardInterrupt):
        hooks.end(None)
    assert ended == ["ended", "ended"]
    hooks.end(None)
    assert ended == ["ended", "ended", "interrupted"]
