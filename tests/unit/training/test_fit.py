"""The progress bar of `fit`, what `fit` prints, and trainings within a training."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_training import IMAGES, LABELS, make_model, short_fit, weights
from torch.utils.data import Dataset, TensorDataset
from tqdm import tqdm

from udmlss.results import LabelFreeScores, StepReport
from udmlss.training.fit import _BAR_FORMAT, _progress_text, _say_that_loading_is_slow
from udmlss.types import PseudoLabels

STEP = StepReport(1, 12.3456, 1.0, 0.2, 0.3, 0.1)
SCORES = LabelFreeScores(self_retrieval=0.8, shared_neighbors=0.5, effective_rank=90.4, spread=0.75)


def pseudo_labels(n_clusters, agreement=None):
    labels = torch.arange(n_clusters)
    return PseudoLabels(labels, None, labels.bincount(), agreement)


def test_progress_text_has_at_most_three_figures():
    assert _progress_text(STEP, pseudo_labels(500), None) == "loss 12.346, 500 clusters"
    assert _progress_text(STEP, pseudo_labels(500, 0.914), None) == "loss 12.346, 500 clusters, agreement 0.91"
    assert _progress_text(STEP, pseudo_labels(500, 0.914), SCORES) == "loss 12.346, 500 clusters, score 0.625"


@given(st.integers(0, 36_000), st.floats(0.1, 35_999), st.integers(2, 10_000), st.sampled_from([None, SCORES]))
def test_progress_bar_with_its_figures_fits_80_columns(n, seconds, n_clusters, scores):
    text = _progress_text(STEP, pseudo_labels(n_clusters, 0.914), scores)
    meter = tqdm.format_meter(n, 36_000, seconds, ncols=80, prefix="fit", bar_format=_BAR_FORMAT, postfix=text)
    assert len(meter) <= 80
    assert f"{n}/36000" in meter
    if n and seconds * (36_000 - n) / n < 35_999:  # 10 hours and more have another digit
        assert f", {text}]" in meter


def test_progress_bar_is_shown_on_stderr(capsys):
    short_fit(make_model(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("fit", "6/6", "loss", "16 clusters", "agreement"):
        assert word in shown.err
    assert max(map(len, shown.err.replace("\n", "\r").split("\r"))) <= 80


def test_nothing_is_printed_without_the_progress_bar(capsys):
    short_fit(make_model(), TensorDataset(IMAGES, LABELS))
    assert capsys.readouterr() == ("", "")


class SlowImages(Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        time.sleep(0.002)
        return IMAGES[index]


@pytest.mark.parametrize("datasets", [(IMAGES, SlowImages()), (SlowImages(), IMAGES)], ids=["embedding", "training"])
def test_slow_loading_is_reported_once(datasets, capsys, monkeypatch):
    monkeypatch.setattr(import_module("udmlss.training.fit"), "_SHORT_WAIT", 0.1)
    _say_that_loading_is_slow.cache_clear()
    images, cluster_images = datasets
    short_fit(make_model(), images, cluster_images=cluster_images, progress=True)
    assert capsys.readouterr().err.count("more than 30% of the time is spent on waiting for images") == 1
    short_fit(make_model(), images, cluster_images=cluster_images, progress=True)
    assert "waiting for images" not in capsys.readouterr().err


def test_result_of_many_rounds_has_a_short_repr():
    short = short_fit(make_model(), label_free=True)
    result = replace(short, history=(short.history[-1],) * 120)
    assert len(repr(result)) < 600
    assert repr(result).startswith("FitResult(120 rounds, 6 steps, stop_reason='max_steps', weights_step=6)\n")
    assert "score=" in repr(result.history[0])
    assert len(repr(result.pseudo_labels)) < 120


def test_a_training_in_another_thread_is_an_error_and_one_within_a_callback_is_not():
    errors = []

    def callback(_report):
        model = make_model()
        with ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(short_fit, model).exception())
        short_fit(model)
        assert_same(model, alone)

    alone, outer = make_model(), make_model()
    short_fit(alone)
    short_fit(outer, callbacks=callback)
    assert_same(outer, alone)
    for error in errors:
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("Only one thread of a process may train at a time, got ")
    assert errors


def assert_same(one, other):
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
