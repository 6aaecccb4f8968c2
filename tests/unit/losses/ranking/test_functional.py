"""rank_loss and positive_loss, compared with loops over pairs, and their generators."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import assert_finite, assert_ten_times_as_fast

from udmlss.losses.ranking.functional import generator_on, positive_loss, rank_loss, seeded_generator, set_default_seed

PAIRS = ("adjacent", "all")


def random_similarities(b=7, n=4, dtype=torch.float64):
    return (2 * torch.rand(b, n, dtype=dtype) - 1).requires_grad_()


def naive_rank_loss(similarities, margin, scale, pairs):
    total = 0.0
    for row in similarities.tolist():
        later = [(i, j) for j in range(len(row)) for i in range(j) if pairs == "all" or j == i + 1]
        total += math.log1p(sum(math.exp(scale * (row[j] - row[i] + margin)) for i, j in later)) / scale
    return total / len(similarities)


def naive_positive_loss(similarities, boundary, scale):
    sums = [sum(math.exp(-scale * (each - boundary)) for each in row) for row in similarities.tolist()]
    return sum(math.log1p(value) / scale for value in sums) / len(sums)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.11, 0.5]),
    st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    st.sampled_from([0.5, 4.0, 32.0]),
)
@settings(max_examples=40, deadline=None)
def test_losses_equal_their_definitions(b, n, margin, boundary, scale):
    similarities = random_similarities(b, n)
    for pairs in PAIRS:
        loss = rank_loss(similarities, margin, scale, pairs=pairs)
        assert loss.item() == pytest.approx(naive_rank_loss(similarities, margin, scale, pairs), abs=1e-9)
    loss = positive_loss(similarities, boundary, scale)
    assert loss.item() == pytest.approx(naive_positive_loss(similarities, boundary, scale), abs=1e-9)


LOSSES = {
    "adjacent": lambda similarities: rank_loss(similarities, 0.1, 8.0),
    "all": lambda similarities: rank_loss(similarities, 0.1, 8.0, pairs="all"),
    "positive": lambda similarities: positive_loss(similarities, 0.5, 8.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    assert torch.autograd.gradcheck(LOSSES[name], random_similarities(3, 4))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preserves_the_dtype(name, dtype):
    assert LOSSES[name](random_similarities(dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("pairs", PAIRS)
def test_rank_loss_is_close_to_the_largest_violation_of_the_margin(pairs):
    similarities = torch.tensor([[0.9, 0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    loss = rank_loss(similarities, 0.1, 100, pairs=pairs)
    assert 0 < loss < 1e-12
    unordered = rank_loss(similarities.flip(1), 0.1, 100, pairs=pairs)
    largest = 0.9 if pairs == "all" else 0.5  # the largest increase plus the margin
    assert unordered.item() == pytest.approx(largest, abs=0.01)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("factor", [1e-30, 1e4, 1e30])
def test_value_and_gradient_of_extreme_similarities_are_finite(name, factor):
    similarities = (factor * random_similarities(dtype=torch.float32)).detach().requires_grad_()
    assert_finite(LOSSES[name](similarities), similarities)


@pytest.mark.parametrize("name", LOSSES)
def test_is_zero_with_a_zero_gradient_without_anchors_or_pairs(name):
    for shape in [(0, 3)] if name == "positive" else [(0, 3), (4, 1)]:
        similarities = torch.zeros(shape, requires_grad=True)
        loss = LOSSES[name](similarities)
        loss.backward()
        assert loss == 0
        assert torch.equal(similarities.grad, torch.zeros(shape))


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda s: rank_loss(s[0], 0.1, 8), r"`similarities` must be a 2-D tensor \(b, n\), got shape \(4,\)\."),
        (lambda s: positive_loss(s[None], 0.1, 8), r"must be a 2-D tensor \(b, n\), got shape \(1, 7, 4\)"),
        (lambda s: rank_loss(s, 0.1, 8, pairs="next"), "`pairs` must be one of 'adjacent', 'all', got 'next'"),
    ],
)
def test_rejects_invalid_arguments(compute, message, unchecked_types):
    with pytest.raises(ValueError, match=message):
        compute(random_similarities())


def test_generator_on_a_device_depends_on_the_other_generator_and_advances_it():
    rows = []
    for _ in range(2):
        generator = seeded_generator(3)
        rows.append([torch.rand(4, generator=generator_on(torch.device("cpu"), generator)) for _ in range(2)])
    assert torch.equal(rows[0][0], rows[1][0])
    assert torch.equal(rows[0][1], rows[1][1])
    assert not torch.equal(rows[0][0], rows[0][1])


def test_default_seed_restarts_a_generator_only_if_the_seed_changes():
    generator, expected = seeded_generator(None), seeded_generator(0)
    first = torch.rand(4, generator=generator)
    assert torch.equal(first, torch.rand(4, generator=expected))
    set_default_seed(generator, 0)
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=expected))
    set_default_seed(generator, 5)
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=seeded_generator(5)))
    set_default_seed(generator, 0)
    assert torch.equal(torch.rand(4, generator=generator), first)


@pytest.mark.parametrize("pairs", PAIRS)
def test_is_ten_times_as_fast_as_a_loop_over_pairs(pairs):
    similarities = random_similarities(256, 5).detach()

    def loop():
        for row in similarities:
            total = torch.ones(())
            for i in range(5):
                for j in range(i + 1, 5 if pairs == "all" else min(i + 2, 5)):
                    total = total + torch.exp(32 * (row[j] - row[i] + 0.11))
            torch.log(total) / 32

    assert_ten_times_as_fast(lambda: rank_loss(similarities, 0.11, 32, pairs=pairs), loop)
