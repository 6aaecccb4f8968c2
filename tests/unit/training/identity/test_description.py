"""Descriptions of runs, and their differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from short_training import IMAGES, make_model

from udmlss import ClusterPseudoLabeler, Rounds
from udmlss.training.identity import check_identity, describe_loop
from udmlss.training.identity.description import optimizer_settings


@given(st.one_of(st.integers(-(2**50), 2**50), st.booleans(), st.floats(-1e6, 1e6)))
def test_numbers_are_compared_by_value(number):
    for value in (number, float(number), np.float64(number)):
        check_identity({"a": value, "b": (1, [value])}, {"a": number, "b": [1, (number,)]})
    with pytest.raises(ValueError, match=r"A checkpoint must be of the same run, got a .* instead of .*\. Resume with"):
        check_identity({"a": number}, {"a": number + 1})


def test_the_first_three_differences_are_listed():
    found = dict.fromkeys("abcde", 1)
    with pytest.raises(
        ValueError, match=r"got a 1 instead of none, b 1 instead of none, c .*, and 2 more differences\."
    ):
        check_identity(found, {})


def test_a_gpu_may_resume_the_run_of_a_cpu():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    fused, plain = (optimizer_settings(torch.optim.AdamW(weights, lr=0.1, fused=fused)) for fused in (True, None))
    check_identity(fused, plain)
    assert plain["optimizer.0.lr"] == 0.1


def test_nothing_is_described_for_other_ranks_in_a_single_process():
    assert describe_loop(Rounds(make_model(), IMAGES, ClusterPseudoLabeler(16))) == {}
