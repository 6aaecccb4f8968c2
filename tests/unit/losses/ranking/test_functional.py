import math
import time

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udmlss.losses.ranking.functional import draws_on, positive_loss, rank_loss

PAIRS = ("adjacent", "all")


def similarities_of(b=7, n=4, dtype=torch.float64):
    return (2 * torch.rand(b, n, dtype=dtype) - 1).requires_grad_()


def rank_by_hand(similarities, margin, scale, pairs):
    losses = []
    for row in similarities.tolist():
        total = 1.0
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                if pairs == "all" or j == i + 1:
                    total += math.exp(scale * (row[j] - row[i] + margin))
        losses.append(math.log(total) / scale)
    return sum(losses) / len(losses)


def positive_by_hand(similarities, boundary, scale):
    losses = []
    for row in similarities.tolist():
        total = 1.0
        for similarity in row:
            total += math.exp(-scale * (similarity - boundary))
        losses.append(math.log(total) / scale)
    return sum(losses) / len(losses)


@given(
    b=st.integers(1, 6),
    n=st.integers(1, 6),
    margin=st.sampled_from([0.0, 0.11, 0.5]),
    scale=st.sampled_from([0.5, 4.0, 32.0]),
    pairs=st.sampled_from(PAIRS),
)
@settings(max_examples=60, deadline=None)
def test_the_rank_loss_is_the_sum_over_pairs_taken_one_by_one(b, n, margin, scale, pairs):
    similarities = similarities_of(b, n)
    found = rank_loss(similarities, margin, scale, pairs=pairs)
    assert found.item() == pytest.approx(rank_by_hand(similarities, margin, scale, pairs), abs=1e-9)


@given(
    b=st.integers(1, 6),
    n=st.integers(1, 6),
    boundary=st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.5, 4.0, 32.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_positive_loss_is_the_sum_over_versions_taken_one_by_one(b, n, boundary, scale):
    similarities = similarities_of(b, n)
    found = positive_loss(similarities, boundary, scale)
    assert found.item() == pytest.approx(positive_by_hand(similarities, boundary, scale), abs=1e-9)


LOSSES = {
    "adjacent": lambda similarities: rank_loss(similarities, 0.1, 8.0),
    "all": lambda similarities: rank_loss(similarities, 0.1, 8.0, pairs="all"),
    "positive": lambda similarities: positive_loss(similarities, 0.5, 8.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name):
    assert torch.autograd.gradcheck(LOSSES[name], similarities_of(3, 4))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(name, dtype):
    assert LOSSES[name](similarities_of(dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_images_makes_no_difference(name):
    similarities = similarities_of()
    torch.testing.assert_close(LOSSES[name](similarities[torch.randperm(7)]), LOSSES[name](similarities))


def test_the_order_of_the_versions_makes_no_difference_to_the_boundary_alone():
    similarities = similarities_of(1, 4).sort(dim=1, descending=True).values
    backwards = similarities.flip(1)
    torch.testing.assert_close(LOSSES["positive"](backwards), LOSSES["positive"](similarities))
    for name in PAIRS:
        assert LOSSES[name](backwards) > LOSSES[name](similarities)


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_shift_of_all_similarities_leaves_their_ranks(pairs):
    similarities = similarities_of()
    torch.testing.assert_close(
        rank_loss(similarities + 3, 0.1, 8, pairs=pairs), rank_loss(similarities, 0.1, 8, pairs=pairs)
    )


def test_with_two_versions_adjacent_and_all_pairs_are_the_same():
    similarities = similarities_of(5, 2)
    torch.testing.assert_close(LOSSES["adjacent"](similarities), LOSSES["all"](similarities))


def test_a_version_that_is_not_adjacent_is_compared_among_all_pairs_only():
    similarities = torch.tensor([[0.5, 0.2, 0.4]], requires_grad=True)
    gradients = {
        pairs: torch.autograd.grad(rank_loss(similarities, 0.0, 8, pairs=pairs), similarities)[0] for pairs in PAIRS
    }
    assert gradients["all"][0, 0] < gradients["adjacent"][0, 0] < 0
    assert gradients["all"][0, 2] > gradients["adjacent"][0, 2] > 0


@pytest.mark.parametrize("pairs", PAIRS)
def test_in_order_by_more_than_the_margin_nothing_is_left_to_learn(pairs):
    similarities = torch.tensor([[0.9, 0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    loss = rank_loss(similarities, 0.1, 100, pairs=pairs)
    assert 0 < loss < 1e-12
    mixed_up = rank_loss(similarities.flip(1), 0.1, 100, pairs=pairs)
    worst = 0.9 if pairs == "all" else 0.5  # the largest rise, and the margin
    assert mixed_up.item() == pytest.approx(worst, abs=0.01)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("factor", [1e-30, 1e4, 1e30])
def test_huge_and_tiny_similarities_give_finite_values_and_gradients(name, factor):
    similarities = (factor * similarities_of(dtype=torch.float32)).detach().requires_grad_()
    loss = LOSSES[name](similarities)
    loss.backward()
    assert loss.isfinite()
    assert similarities.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_without_an_image_the_loss_is_zero_and_has_a_gradient(name):
    similarities = torch.zeros(0, 3, requires_grad=True)
    loss = LOSSES[name](similarities)
    loss.backward()
    assert loss == 0
    assert similarities.grad.shape == (0, 3)


@pytest.mark.parametrize("name", PAIRS)
def test_a_single_version_has_no_rank(name):
    similarities = similarities_of(4, 1)
    loss = LOSSES[name](similarities)
    loss.backward()
    assert loss == 0
    assert not similarities.grad.any()


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        (lambda s: rank_loss(s[0], 0.1, 8), r"`similarities` must be a matrix \(b n\).*found shape \(4,\)\. Give each"),
        (lambda s: positive_loss(s[None], 0.1, 8), r"must be a matrix \(b n\).*found shape \(1, 7, 4\)"),
        (lambda s: rank_loss(s, -0.1, 8), "`margin` must be at least 0, got -0.1"),
        (lambda s: rank_loss(s, 0.1, 0), "`scale` must be above 0, got 0"),
        (lambda s: positive_loss(s, 0.1, -1), "`scale` must be above 0, got -1"),
        (lambda s: positive_loss(s, 1.5, 8), r"`boundary` must lie in -1\.\.1, got 1\.5"),
        (lambda s: rank_loss(s, 0.1, 8, pairs="next"), "`pairs` must be one of 'adjacent', 'all', got 'next'"),
    ],
)
def test_what_makes_no_sense_is_refused(compute, sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=sentence):
        compute(similarities_of())


def test_a_generator_drawn_from_another_follows_it_and_moves_it_on():
    rows = []
    for _ in range(2):
        draws = torch.Generator().manual_seed(3)
        rows.append([torch.rand(4, generator=draws_on(torch.device("cpu"), draws)) for _ in range(2)])
    assert torch.equal(rows[0][0], rows[1][0])
    assert torch.equal(rows[0][1], rows[1][1])
    assert not torch.equal(rows[0][0], rows[0][1])


def seconds(compute):
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


@pytest.mark.parametrize("pairs", PAIRS)
def test_it_is_ten_times_as_fast_as_tensors_added_up_pair_by_pair(pairs):
    similarities = similarities_of(512, 5).detach()

    def pair_by_pair():
        for row in similarities:
            total = torch.ones(())
            for i in range(5):
                for j in range(i + 1, 5 if pairs == "all" else min(i + 2, 5)):
                    total = total + torch.exp(32 * (row[j] - row[i] + 0.11))
            torch.log(total) / 32

    fast = min(seconds(lambda: rank_loss(similarities, 0.11, 32, pairs=pairs)) for _ in range(9))
    assert 10 * fast < seconds(pair_by_pair)
