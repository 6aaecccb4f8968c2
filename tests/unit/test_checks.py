import jaxtyping
import numpy as np
import pytest
import torch

from udmlss._checks import (
    check_at_least,
    check_choice,
    check_embeddings,
    check_features,
    check_labels,
    check_positive,
    check_within,
    type_error,
    value_error,
)


@pytest.fixture(autouse=True)
def _types_unchecked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signatures refuse some, too


@pytest.mark.parametrize(("make", "kind"), [(value_error, ValueError), (type_error, TypeError)])
def test_a_refusal_says_the_rule_what_was_found_and_the_remedy(make, kind):
    error = make("`k` must be even", 3, "Double it")
    assert type(error) is kind
    assert str(error) == "`k` must be even, got 3. Double it."


def test_a_number_below_the_least_is_refused_and_the_least_is_not():
    check_at_least("k", 2, 2)
    with pytest.raises(ValueError, match=r"`k` must be at least 2, got 1\. Raise it\."):
        check_at_least("k", 1, 2)


@pytest.mark.parametrize("found", [0, -1.0, float("nan")])
def test_a_number_that_is_not_above_zero_is_refused(found):
    check_positive("s", 1e-9)
    with pytest.raises(ValueError, match=r"`s` must be above 0, got .*\. Raise it\."):
        check_positive("s", found)


@pytest.mark.parametrize("found", [-1.1, 1.1, float("nan")])
def test_a_number_outside_a_range_is_refused_and_its_ends_are_not(found):
    check_within("b", -1, -1, 1)
    check_within("b", 1.0, -1, 1)
    with pytest.raises(ValueError, match=r"`b` must lie in -1\.\.1, got .*\. Choose a number in this range\."):
        check_within("b", found, -1, 1)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((2,), r"nn\.Flatten\(\)"), ((2, 3, 4), "Take a token or their mean"), ((2, 3, 4, 5), r"nn\.Flatten\(\)")],
)
def test_features_that_are_no_matrix_are_refused(shape, remedy):
    check_features(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=rf"The trunk must return features \(b f\), got shape .*{remedy}\."):
        check_features(torch.zeros(shape))


@pytest.mark.parametrize("found", [(torch.zeros(2, 3),), {"pooler_output": torch.zeros(2, 3)}, None])
def test_features_that_are_no_tensor_are_refused(found):
    rule, kind = r"The trunk must return features \(b f\)", type(found).__name__
    with pytest.raises(
        TypeError, match=rf"{rule}, got {kind}\. Wrap it in a module .* `trunk\(images\)\.pooler_output`\."
    ):
        check_features(found)


def test_a_value_that_is_no_choice_is_refused():
    check_choice("what", "a", ("a", None))
    with pytest.raises(ValueError, match=r"`what` must be one of 'a', None, got 'b'\. Pass one of these\."):
        check_choice("what", "b", ("a", None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_finite_matrix_of_any_floating_type_is_embeddings(dtype):
    check_embeddings(torch.ones(3, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("found", "kind", "sentence"),
    [
        (np.ones((3, 2)), TypeError, r"`queries` must be a tensor \(n d\), got ndarray\. Use torch\.as_tensor\."),
        ([[1.0]], TypeError, r"`queries` must be a tensor \(n d\), got list\."),
        (torch.ones(3), ValueError, r"`queries` must be a non-empty matrix \(n d\), got shape \(3,\)\. Flatten"),
        (torch.ones(3, 2, 1), ValueError, r"found shape \(3, 2, 1\)\. Flatten each item to one row\."),
        (torch.ones(0, 2), ValueError, r"found shape \(0, 2\)"),
        (torch.ones(2, 0), ValueError, r"found shape \(2, 0\)"),
        (
            torch.ones(3, 2).long(),
            TypeError,
            r"`queries` must hold floating-point .* torch\.int64\. Call \.float\(\) first",
        ),
        (torch.ones(3, 2).cfloat(), TypeError, r"hold floating-point numbers, got torch\.complex64"),
        (
            torch.ones(3, 2).log() / 0,
            ValueError,
            r"`queries` must be finite, got 3 of 3 rows .* is row 0\. ",
        ),
        (
            torch.tensor([[0.0, 0.0], [0.0, -torch.inf], [0.0, 1.0], [torch.nan, torch.nan]]),
            ValueError,
            r"found 2 of 4 rows with NaN or infinity, the first is row 1\. Lower the learning rate, clip",
        ),
    ],
)
def test_what_is_no_finite_matrix_is_refused_under_its_name(found, kind, sentence):
    with pytest.raises(kind, match=sentence):
        check_embeddings(found, "queries")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_whole_numbers_of_any_type_are_labels(dtype):
    check_labels(torch.zeros(3, dtype=dtype), 3)


@pytest.mark.parametrize(
    ("found", "kind", "sentence"),
    [
        ([0, 1, 1], TypeError, r"`classes` must be a tensor \(n\), got list\. Use torch\.as_tensor\."),
        (torch.zeros(3), TypeError, r"`classes` must be whole numbers, got torch\.float32\. Call \.long\(\) first\."),
        (torch.zeros(3).bool(), TypeError, r"`classes` must be whole numbers, got torch\.bool"),
        (torch.zeros(3).cfloat(), TypeError, r"`classes` must be whole numbers, got torch\.complex64"),
        (
            torch.zeros(4).long(),
            ValueError,
            r"`classes` must have shape \(3,\), one .*, got shape \(4,\)",
        ),
        (torch.zeros(3, 1).long(), ValueError, r"found shape \(3, 1\)\. Pass one label per item, in order\."),
    ],
)
def test_what_is_not_one_whole_number_an_item_is_refused_under_its_name(found, kind, sentence):
    with pytest.raises(kind, match=sentence):
        check_labels(found, 3, "classes")
