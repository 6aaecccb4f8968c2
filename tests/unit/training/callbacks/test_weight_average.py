from threading import Lock
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from torch import nn

from udmlss import StepReport, WeightAverage

REPORT = StepReport(1, 1.0, 1.0, None, None, None)


class Buffers(nn.Module):
    """A module with buffers of several types."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.low_precision = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
        self.register_buffer("mean", torch.tensor([4.0]))
        self.register_buffer("counter", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("unsaved", torch.tensor([8.0]), persistent=False)


def start(model, decay=0.75):
    average = WeightAverage(decay)
    run = SimpleNamespace(model=model, rounds=SimpleNamespace(model=model))
    average.on_start(run)
    return average, run


def change(model):
    with torch.no_grad():
        model.weight.copy_(torch.tensor([3.0, -2.0]))
        model.low_precision.fill_(5)
    model.mean.fill_(0)
    model.counter.fill_(7)
    model.mask.logical_not_()
    model.unsaved.fill_(0)


def test_first_step_averages_with_the_weights_before_training_and_copies_other_types():
    model = Buffers()
    average, run = start(model)
    assert run.rounds.model is average.model is not model
    change(model)
    average.on_step(REPORT)
    found = average.model
    assert found.weight.tolist() == [0.75 * 1 + 0.25 * 3, 0.75 * 2 - 0.25 * 2]
    assert found.low_precision.tolist() == [0.75 * 1 + 0.25 * 5]
    assert found.low_precision.dtype == torch.bfloat16
    assert found.mean.tolist() == [3.0]
    assert found.unsaved.tolist() == [6.0]
    assert found.counter.item() == 7
    assert found.mask.tolist() == [False, True]
    assert model.weight.tolist() == [3.0, -2.0]


def test_average_has_no_gradients_and_is_loaded_into_the_model_at_the_end():
    model = Buffers()
    average, run = start(model)
    change(model)
    average.on_step(REPORT)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    average.on_end(run)
    torch.testing.assert_close(model.state_dict(), average.model.state_dict(), rtol=0, atol=0)
    assert model.weight.requires_grad


def test_state_is_that_of_the_average():
    average, _ = start(Buffers())
    change(average._trained)
    average.on_step(REPORT)
    other, _ = start(Buffers())
    other.load_state_dict(average.state_dict())
    torch.testing.assert_close(other.model.state_dict(), average.model.state_dict(), rtol=0, atol=0)


def test_second_run_starts_from_its_own_model():
    average, run = start(Buffers())
    change(run.model)
    average.on_step(REPORT)
    average.on_end(run)
    model = Buffers()
    average.on_start(SimpleNamespace(model=model, rounds=SimpleNamespace(model=model)))
    torch.testing.assert_close(average.model.state_dict(), Buffers().state_dict())


def test_a_model_that_cannot_be_copied_is_an_error_that_names_the_setting():
    model = Buffers()
    model.lock = Lock()
    with pytest.raises(TypeError, match=r"got TypeError: cannot pickle .*\. Pass `average_weights=False` to `fit`, or"):
        start(model)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 2, float("nan"), True, "0.9"])
def test_decay_must_lie_between_0_and_1(decay, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError), match=r"`decay` must "):
        WeightAverage(decay)
