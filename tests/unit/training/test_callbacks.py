import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udmlss import RoundReport, StopWhenSettled
from udmlss.types import Callback


def report(agreement):
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
        label_free=None,
        seconds=0.1,
    )


def test_it_is_a_callback():
    assert isinstance(StopWhenSettled(), Callback)


@given(
    st.lists(st.one_of(st.none(), st.sampled_from([-0.1, 0.5, 0.79, 0.8, 0.81, 1.0])), max_size=12), st.integers(1, 4)
)
def test_it_ends_where_as_many_rounds_in_a_row_as_it_has_patience_were_settled(agreements, patience):
    callback = StopWhenSettled(0.8, patience)
    for done in range(1, len(agreements) + 1):
        latest = agreements[max(0, done - patience) : done]
        settled = len(latest) == patience and all(each is not None and each >= 0.8 for each in latest)
        assert callback(report(agreements[done - 1])) is settled


def test_the_first_round_of_another_run_begins_anew():
    callback = StopWhenSettled(0.9, 2)
    assert [callback(report(each)) for each in (None, 0.95, None, 0.95, 0.95)] == [False, False, False, False, True]


@pytest.mark.parametrize("agreement", [0.0, -0.5, 1.01, math.nan])
def test_an_agreement_that_no_round_or_every_round_reaches_is_refused(agreement):
    sentence = rf"`agreement` must lie above 0 and up to 1, got {agreement}\. Values near 0\.95 are usual\."
    with pytest.raises(ValueError, match=sentence):
        StopWhenSettled(agreement)


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match=r"`patience` must be at least 1, got 0\. Raise it\."):
        StopWhenSettled(patience=0)
