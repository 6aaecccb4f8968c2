from types import SimpleNamespace

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st
from short_training import Augmented

from udmlss import EarlyStopping, IndexedImages, RoundReport
from udmlss.image_loader import ImageLoader
from udmlss.results import LabelFreeScores


def scores(score):
    return None if score is None else LabelFreeScores(0.5, score, 5.0, score)


def report(*, agreement=None, score=None):
    return RoundReport(
        round=1,
        step=30,
        n_clusters=10,
        n_unassigned=0,
        largest_cluster=0.2,
        smallest_cluster=0.05,
        agreement=agreement,
        loss=1.0,
        metric_loss=1.0,
        rotation_loss=None,
        rotation_accuracy=None,
        auxiliary_loss=None,
        label_free=scores(score),
        seconds=0.1,
    )


def start(callback, start_score=None):
    images = IndexedImages(Augmented())
    rounds = SimpleNamespace(images=images, cluster_images=images, start_scores=scores(start_score))
    rounds.loader = ImageLoader([images])
    callback.on_start(SimpleNamespace(rounds=rounds))
    return callback


@given(
    st.lists(st.one_of(st.none(), st.sampled_from([-0.1, 0.5, 0.79, 0.8, 0.81, 1.0])), max_size=12), st.integers(1, 4)
)
def test_agreement_ends_training_after_patience_rounds_in_a_row(agreements, patience):
    callback = start(EarlyStopping("agreement", threshold=0.8, patience=patience))
    for done in range(1, len(agreements) + 1):
        latest = agreements[max(0, done - patience) : done]
        unchanged = len(latest) == patience and all(each is not None and each >= 0.8 for each in latest)
        assert callback.on_round(report(agreement=agreements[done - 1])) is unchanged


@given(st.one_of(st.none(), st.integers(0, 3)), st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_score_ends_training_patience_rounds_after_the_highest(start_score, found, patience):
    callback = start(EarlyStopping(patience=patience), start_score)
    before = [] if start_score is None else [start_score]
    for done in range(1, len(found) + 1):
        seen = before + found[:done]
        since_best = len(seen) - 1 - seen.index(max(seen))
        assert callback.on_round(report(score=found[done - 1])) is (since_best >= patience)
        if since_best >= patience:
            break


def test_state_continues_the_count_and_a_second_run_starts_from_scratch():
    callback = start(EarlyStopping(patience=2), 3)
    assert not callback.on_round(report(score=1))
    other = start(EarlyStopping(patience=2), 0)
    other.load_state_dict(callback.state_dict())
    assert other.on_round(report(score=2))
    start(callback, 3)
    assert not callback.on_round(report(score=1))


def test_only_the_score_needs_label_free_scores():
    assert EarlyStopping().needs_label_free
    assert not EarlyStopping("agreement").needs_label_free


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": -0.1},
        {"threshold": 1.01},
        {"threshold": float("nan")},
        {"patience": 0},
        {"patience": 1.5},
        {"monitor": "loss"},
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, TypeError), match=rf"`{next(iter(arguments))}` must "):
        EarlyStopping(**arguments)
