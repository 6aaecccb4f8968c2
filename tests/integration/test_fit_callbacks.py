"""Calls of callbacks by `fit`, the end of training, and errors during training."""

import numpy as np
import pytest
import torch
from short_training import IMAGES, Augmented, figures, make_model, short_fit, weights
from torch import nn

from udmlss import BestWeights, EarlyStopping, RotationPretextHead, WeightAverage, embed


class Recording:
    """A callback with all methods, which stores their calls in a list."""

    def __init__(self, calls, name="", returned=None):
        self.calls, self.name, self.returned = calls, name, returned

    def on_start(self, run):
        self.calls.append((self.name, "on_start", run.step))

    def on_step(self, report):
        self.calls.append((self.name, "on_step", report.step))
        return self.returned

    def on_round(self, report):
        self.calls.append((self.name, "on_round", report.step))
        return self.returned

    def on_end(self, run):
        self.calls.append((self.name, "on_end", run.step))


def test_methods_are_called_in_order_and_on_end_in_reverse_order():
    calls = []
    callbacks = [
        Recording(calls, "a"),
        lambda report: calls.append(("f", "on_round", report.step)),
        Recording(calls, "b"),
    ]
    result = short_fit(make_model(), callbacks=callbacks, max_steps=3, relabel_every=2)
    expected = []
    for method, step, functions in (
        ("on_start", 0, []),
        ("on_step", 1, []),
        ("on_step", 2, []),
        ("on_round", 2, ["f"]),
        ("on_step", 3, []),
        ("on_round", 3, ["f"]),
    ):
        expected += [(name, method, step) for name in ["a", "b", *functions]]
    assert calls == [*expected, ("b", "on_end", 3), ("a", "on_end", 3)]
    assert result.stop_reason == "max_steps"


def test_reports_are_those_of_the_result():
    reports, steps = [], []

    class Steps:
        def on_step(self, report):
            steps.append(report)

    result = short_fit(make_model(), rotation_head=RotationPretextHead(256, 8), callbacks=[reports.append, Steps()])
    assert tuple(reports) == result.history
    assert [report.step for report in steps] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "metric_loss", "rotation_loss", "rotation_accuracy"):
        means = [sum(getattr(step, name) for step in steps[start : start + 3]) / 3 for start in (0, 3)]
        assert [getattr(report, name) for report in reports] == pytest.approx(means)


def test_function_that_returns_true_ends_training_after_the_round():
    reports = []
    result = short_fit(make_model(), max_steps=30, callbacks=[reports.append, lambda report: report.round == 1])
    assert [report.step for report in reports] == [3, 6]
    assert tuple(reports) == result.history
    assert result.stop_reason == "callback"


def test_on_step_that_returns_true_ends_training_within_the_round():
    calls = []

    class Stopping:
        def on_step(self, report):
            return np.bool_(report.step == 5)

    result = short_fit(make_model(), max_steps=30, callbacks=[Stopping(), Recording(calls)])
    assert [report.step for report in result.history] == [3, 5]
    assert result.stop_reason == "callback"
    assert calls[-2:] == [("", "on_step", 5), ("", "on_end", 5)]


def test_a_request_to_stop_ends_training_whatever_its_reason():
    class Stopping:
        def on_start(self, run):
            self.run = run

        def on_step(self, _report):
            self.run.request_stop("terminate")

    result = short_fit(make_model(), callbacks=Stopping())
    assert result.stop_reason == "callback"
    assert result.weights_step == 1


@pytest.mark.parametrize("returned", [1, [0], "yes", False, None])
def test_only_true_itself_ends_training(returned):
    callbacks = [Recording([], returned=returned), lambda _report: returned]
    result = short_fit(make_model(), callbacks=callbacks)
    assert result.stop_reason == "max_steps"
    assert len(result.history) == 2


@pytest.mark.parametrize("raised", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ["on_start", "on_step", "on_round"])
def test_on_end_of_started_callbacks_is_called_after_an_error(method, raised):
    calls = []

    def fail(*_):
        raise raised

    failing = type("Failing", (), {method: fail})()
    callbacks = [Recording(calls, "first"), failing, Recording(calls, "last")]
    if isinstance(raised, KeyboardInterrupt):
        assert short_fit(make_model(), callbacks=callbacks).stop_reason == "interrupt"
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            short_fit(make_model(), callbacks=callbacks)
    ended = [name for name, called, _ in calls if called == "on_end"]
    assert ended == (["first"] if method == "on_start" else ["last", "first"])


def test_every_on_end_is_called_even_if_one_raises_an_error():
    calls = []

    class Failing:
        def on_end(self, _run):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        short_fit(make_model(), callbacks=[Recording(calls), Failing()], max_steps=1)
    assert calls[-1] == ("", "on_end", 1)


def test_callbacks_of_a_finished_run_start_from_scratch_in_the_next_run():
    callbacks = [WeightAverage(0.5), EarlyStopping(patience=1), BestWeights()]
    runs = []
    for used in (callbacks, callbacks, [WeightAverage(0.5), EarlyStopping(patience=1), BestWeights()]):
        model = make_model()
        result = short_fit(model, Augmented(), cluster_images=IMAGES, callbacks=used, max_steps=12)
        runs.append((weights(model), figures(result), result.weights_step))
    for run in runs[1:]:
        assert torch.equal(run[0], runs[0][0])
        assert run[1:] == runs[0][1:]


def test_label_free_scores_are_none_unless_they_are_needed():
    class Needing:
        needs_label_free = True

        def on_round(self, report):
            assert report.label_free is not None

    settings = {"cluster_images": IMAGES, "max_steps": 2, "relabel_every": 1}
    for arguments in ({}, {"callbacks": [WeightAverage(), EarlyStopping("agreement"), print_nothing]}):
        result = short_fit(make_model(), Augmented(), **settings, **arguments)
        assert {result.start, result.label_free, *(report.label_free for report in result.history)} == {None}
    for arguments in (
        {"label_free": True},
        {"callbacks": EarlyStopping()},
        {"callbacks": BestWeights()},
        {"callbacks": [print_nothing, Needing()]},
    ):
        result = short_fit(make_model(), Augmented(), **settings, **arguments)
        assert None not in {result.start, result.label_free, *(report.label_free for report in result.history)}


def print_nothing(_report):
    """A callback without effect."""


def test_ctrl_c_returns_the_history_so_far_and_the_present_weights():
    class Interrupted(nn.Module):
        calls = 0

        def forward(self, embeddings, labels):
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            return ((embeddings - embeddings.roll(1, 0)) ** 2).mean()

    model = make_model()
    start = weights(model)
    result = short_fit(model, criterion=Interrupted())
    assert result.stop_reason == "interrupt"
    assert [report.step for report in result.history] == [3, 4]
    assert result.weights_step == 4
    assert result.pseudo_labels is not None
    assert not torch.equal(start, weights(model))


def test_loss_that_is_not_finite_raises_an_error_and_leaves_the_weights_finite():
    class Failing(nn.Module):
        calls = 0

        def forward(self, embeddings, labels):
            self.calls += 1
            return embeddings.sum() * (float("nan") if self.calls == 5 else 1.0)

    model, reports = make_model(), []
    with pytest.raises(FloatingPointError, match=r"got nan \(metric nan\)\. Lower the") as caught:
        short_fit(model, criterion=Failing(), callbacks=[reports.append])
    assert caught.value.__notes__[-1] == "`fit` had taken 4 steps in 1 complete rounds."
    assert weights(model).isfinite().all()
    assert len(reports) == 1


class RecordingSGD(torch.optim.SGD):
    """Stores the model's weights after each step."""

    def step(self, closure=None):
        super().step(closure)
        self.seen = [
            *getattr(self, "seen", []),
            torch.cat([p.detach().flatten() for p in self.param_groups[0]["params"]]),
        ]


def test_weight_average_is_that_of_the_weights_before_training_and_after_each_step():
    model, decay = make_model(), 0.7
    expected = weights(model)
    optimizer = RecordingSGD(model.parameters(), lr=0.1)
    callback = WeightAverage(decay)
    short_fit(model, optimizer=optimizer, callbacks=callback)
    for after in optimizer.seen:
        expected = decay * expected + (1 - decay) * after
    assert torch.allclose(weights(model), expected, atol=1e-6)
    assert torch.equal(weights(callback.model), weights(model))
    assert not torch.allclose(weights(model), optimizer.seen[-1], atol=1e-4)


def test_rounds_cluster_the_embeddings_of_the_weight_average():
    clustered, averages, average = [], [], WeightAverage(0.9)

    class Averages:
        def on_round(self, _report):
            averages.append(embed(average.model, IMAGES))

    def labeler(embeddings):
        clustered.append(embeddings)
        return torch.arange(len(embeddings)) % 16

    settings = {"cluster_on": "embeddings", "lr": 0.1, "trunk_lr": 0.1}
    short_fit(make_model(), labeler=labeler, callbacks=[average, Averages()], **settings)
    torch.testing.assert_close(clustered[1], averages[0], rtol=0, atol=0)
