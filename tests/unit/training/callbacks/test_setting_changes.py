"""Settings that change on purpose when a run resumes."""

from functools import partial

import pytest
import torch
from interrupted_training import Noisy, assert_same, build, train
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, SequentialLR

from udmlss import Checkpoint, fit


def halving(optimizer):
    return LambdaLR(optimizer, lambda step: 0.5**step)


def halving_first(optimizer):
    return SequentialLR(optimizer, [halving(optimizer), LambdaLR(optimizer, lambda _: 0.1)], [5])


def one_cycle(optimizer):
    return OneCycleLR(optimizer, [4 * group["lr"] for group in optimizer.param_groups], total_steps=8)


def train_with(*callbacks, scheduler=None, max_steps=8, lr=0.1, clip_norm=None, **settings):
    """Train by SGD, and return the settings of its parameter groups before each step but the first."""
    model, arguments = build(rotation_head=None, max_steps=max_steps, clip_norm=clip_norm)
    parts = {"trunk": model.trunk, "embedder": model.embedder}
    groups = [{"name": name, "params": part.parameters(), "lr": lr} for name, part in parts.items()]
    groups[1]["lr"] = 0.2  # does not change
    optimizer, seen = torch.optim.SGD(groups, **({"weight_decay": 0.01} | settings)), []

    class Record:
        def on_step(self, _report):
            groups = optimizer.param_groups
            seen.append([{key: value for key, value in group.items() if key != "params"} for group in groups])

    found = None if scheduler is None else scheduler(optimizer)
    fit(model, Noisy(), **arguments, optimizer=optimizer, scheduler=found, callbacks=[Record(), *callbacks])
    return seen


@pytest.mark.parametrize("scheduler", [None, halving, halving_first, one_cycle])
def test_a_changed_learning_rate_continues_the_course_of_the_scheduler(scheduler, tmp_path):
    expected = train_with(scheduler=scheduler, lr=0.03)
    train_with(Checkpoint(tmp_path), scheduler=scheduler, max_steps=4)
    message = r"The resumed run changes optimizer\.trunk\..*lr from .* to "
    with pytest.warns(UserWarning, match=message) as warned:
        found = train_with(Checkpoint(tmp_path, resume=True, allow_changes="lr"), scheduler=scheduler, lr=0.03)
    assert "embedder" not in str(warned[0].message)
    assert found == [[pytest.approx(group) for group in groups] for groups in expected[4:]]
    again = train_with(Checkpoint(tmp_path, resume=True), scheduler=scheduler, lr=0.03)  # is the run's own setting now
    assert again == []


def test_the_factor_of_a_scheduler_may_change(tmp_path):
    half, whole = (partial(LambdaLR, lr_lambda=lambda _step, factor=factor: factor) for factor in (0.5, 1.0))
    train_with(Checkpoint(tmp_path), scheduler=half, max_steps=4)
    with pytest.warns(UserWarning, match=r"optimizer\.trunk\.lr from 0\.05 to 0\.1"):
        found = train_with(Checkpoint(tmp_path, resume=True, allow_changes="lr"), scheduler=whole)
    assert [groups[0]["lr"] for groups in found] == [0.1] * 4


def test_other_settings_of_the_optimizer_and_of_fit_may_change(tmp_path):
    train_with(Checkpoint(tmp_path), max_steps=4)
    changes = {"weight_decay": 0.5, "momentum": 0.9, "clip_norm": 1.0}
    with pytest.warns(UserWarning, match=r"clip_norm from None to 1\.0.* optimizer\.trunk\.weight_decay from 0\.01 to"):
        found = train_with(Checkpoint(tmp_path, resume=True, allow_changes=[*changes]), **changes)
    assert len(found) == 4
    assert all(group["weight_decay"] == 0.5 and group["momentum"] == 0.9 for groups in found for group in groups)


def test_allowed_changes_that_are_not_made_change_nothing(tmp_path):
    train(Checkpoint(tmp_path), max_steps=4)
    resumed = train(Checkpoint(tmp_path, resume=True, allow_changes=("lr", "weight_decay", "clip_norm", "precision")))
    assert_same(resumed, train())


def test_changes_that_are_not_allowed_are_refused(tmp_path):
    train_with(Checkpoint(tmp_path), max_steps=4)
    with pytest.raises(ValueError, match=r"same run, got optimizer\.trunk\.weight_decay 0\.01 instead of 0\.5"):
        train_with(Checkpoint(tmp_path, resume=True, allow_changes=("lr",)), lr=0.5, weight_decay=0.5)


@pytest.mark.parametrize("name", ["seed", "learning_rate", "name"])
def test_rejects_names_of_settings_that_cannot_change(name, tmp_path):
    train_with(Checkpoint(tmp_path), max_steps=4)
    rule = (
        rf"`allow_changes` must name settings that may change, got '{name}'\. Choose from clip_norm, .*weight_decay\."
    )
    with pytest.raises(ValueError, match=rule):
        train_with(Checkpoint(tmp_path, resume=True, allow_changes=(name,)))
