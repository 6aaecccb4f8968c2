from collections import OrderedDict

import jaxtyping
import numpy as np
import pytest
import torch

from udmlss._checks import (
    as_features,
    as_labels,
    check_choice,
    check_distinct,
    check_embeddings,
    check_integer,
    check_number,
    type_error,
    value_error,
)


@pytest.fixture(autouse=True)
def _untyped(monkeypatch):
    """Without the types of the signatures, which reject some arguments before the checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("make", "kind"), [(value_error, ValueError), (type_error, TypeError)])
def test_an_error_states_the_rule_the_value_and_the_remedy(make, kind):
    error = make("`k` must be even", 3, "Double it")
    assert type(error) is kind
    assert str(error) == "`k` must be even, got 3. Double it."


def test_check_integer_accepts_integers_of_python_and_numpy():
    for value in (2, 5, np.int64(2), np.uint8(5)):
        check_integer("k", value, 2)
        check_integer("k", value, 2, 5)


@pytest.mark.parametrize(
    ("value", "most", "kind", "sentence"),
    [
        (1, None, ValueError, r"`k` must be at least 2, got 1\. Raise it\."),
        (6, 5, ValueError, r"`k` must lie in 2\.\.5, got 6\. Choose a number in this range\."),
        (np.int64(1), 5, ValueError, r"`k` must lie in 2\.\.5, got 1\."),
        (2.0, None, TypeError, r"`k` must be an integer, got 2\.0 of type float\. Pass an int\."),
        (True, None, TypeError, r"`k` must be an integer, got True of type bool\."),
        (None, None, TypeError, r"`k` must be an integer, got None of type NoneType\."),
        ("3", None, TypeError, r"`k` must be an integer, got '3' of type str\."),
    ],
)
def test_check_integer_rejects_other_values(value, most, kind, sentence):
    with pytest.raises(kind, match=sentence):
        check_integer("k", value, 2, most)


def test_check_number_accepts_numbers_of_python_and_numpy():
    for value in (0, 0.5, 1, np.float32(0.5), np.int64(1)):
        check_number("b", value, 0, 1)
        check_number("b", value, 0)
        check_number("b", value, most=1)
        check_number("b", value, above=-1e-9)
        check_number("b", value)


@pytest.mark.parametrize(
    ("value", "limits", "kind", "sentence"),
    [
        (-1.1, {"least": -1, "most": 1}, ValueError, r"`b` must lie in -1\.\.1, got -1\.1\. Choose a number in this"),
        (1.1, {"least": -1, "most": 1}, ValueError, r"`b` must lie in -1\.\.1, got 1\.1\."),
        (0.5, {"least": 1}, ValueError, r"`b` must be at least 1, got 0\.5\. Raise it\."),
        (1.5, {"most": 1}, ValueError, r"`b` must be at most 1, got 1\.5\. Lower it\."),
        (0, {"above": 0}, ValueError, r"`b` must be above 0, got 0\.0\. Raise it\."),
        (float("nan"), {}, ValueError, r"`b` must be finite, got nan\."),
        (np.float32("inf"), {}, ValueError, r"`b` must be finite, got inf\."),
        (True, {}, TypeError, r"`b` must be a number, got True of type bool\. Pass a float\."),
        ("0.5", {}, TypeError, r"`b` must be a number, got '0\.5' of type str\."),
    ],
)
def test_check_number_rejects_other_values(value, limits, kind, sentence):
    with pytest.raises(kind, match=sentence):
        check_number("b", value, **limits)


def test_check_choice_rejects_other_values():
    check_choice("output", "a", ("a", None))
    with pytest.raises(ValueError, match=r"`output` must be one of 'a', None, got 'b'\. Pass one of these\."):
        check_choice("output", "b", ("a", None))


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((2,), r"nn\.Flatten\(\)"), ((2, 3, 4), "Select one token or average"), ((2, 3, 4, 5), r"nn\.Flatten\(\)")],
)
def test_features_of_other_shapes_are_errors(shape, remedy):
    features = torch.zeros(2, 3)
    assert as_features(features) is features
    with pytest.raises(ValueError, match=rf"The trunk must return features of shape \(b, f\), got shape .*{remedy}"):
        as_features(torch.zeros(shape))


class ModelOutput(OrderedDict):
    """An output of a model of Hugging Face: a dictionary whose values are attributes; None is no key."""

    def __init__(self, **values):
        super().__init__((key, value) for key, value in values.items() if value is not None)
        vars(self).update(values)


def test_features_of_a_model_of_hugging_face_are_its_pooler_output():
    features = torch.zeros(2, 3)
    assert as_features(ModelOutput(last_hidden_state=torch.zeros(2, 5, 3), pooler_output=features)) is features
    with pytest.raises(ValueError, match=r"a `pooler_output` of shape \(b, f\), got shape \(2, 3, 1, 1\)\. End it"):
        as_features(ModelOutput(pooler_output=torch.zeros(2, 3, 1, 1)))


@pytest.mark.parametrize(
    "found",
    [
        (torch.zeros(2, 3),),
        {"pooler_output": torch.zeros(2, 3)},
        ModelOutput(last_hidden_state=torch.zeros(2, 5, 3), pooler_output=None),
        ModelOutput(logits=torch.zeros(2, 3)),
        None,
    ],
)
def test_other_outputs_of_a_trunk_are_errors_with_a_remedy(found):
    sentence = rf"The model must return a tensor \(b, f\), got {type(found).__name__}\. Wrap it in an nn\.Module whose"
    with pytest.raises(TypeError, match=sentence):
        as_features(found, "The model")


def test_check_embeddings_accepts_finite_tensors_of_any_floating_type():
    rows = torch.tensor([[1.0, -3.0], [2.0, -1.0], [0.0, -2.0]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found = check_embeddings(rows.to(dtype).requires_grad_())
        assert (found.low.tolist(), found.high.tolist()) == ([0, -3], [2, -1])


def test_embeddings_collapse_if_all_rows_are_equal():
    rows = torch.randn(1, 64).repeat(50, 1)
    with pytest.raises(ValueError, match=r"Embeddings must differ, got 50 equal rows: the model has collapsed\."):
        check_distinct(check_embeddings(rows), 50)
    rows[7, 3] = torch.nextafter(rows[7, 3], torch.tensor(torch.inf))
    check_distinct(check_embeddings(rows), 50)


def test_a_range_is_extreme_if_squares_lose_precision_in_float32():
    rows = torch.nn.functional.normalize(torch.randn(100, 8))
    for ordinary in (rows, 1e9 * rows, 1e-9 * rows, rows + 3):
        assert not check_embeddings(ordinary).is_extreme
    for extreme in (rows + 100, 1e19 * rows, 1e-13 * rows, rows / 1e3 + rows[:1]):
        assert check_embeddings(extreme).is_extreme


@pytest.mark.parametrize(
    ("found", "kind", "sentence"),
    [
        (np.ones((3, 2)), TypeError, r"`queries` must be a tensor \(n, d\), got ndarray\. Use torch\.as_tensor\."),
        ([[1.0]], TypeError, r"`queries` must be a tensor \(n, d\), got list\."),
        (torch.ones(3), ValueError, r"`queries` must be a non-empty 2-D tensor, got shape \(3,\)\. Flatten each item"),
        (torch.ones(3, 2, 1), ValueError, r"got shape \(3, 2, 1\)"),
        (torch.ones(0, 2), ValueError, r"got shape \(0, 2\)"),
        (torch.ones(2, 0), ValueError, r"got shape \(2, 0\)"),
        (torch.ones(3, 2).long(), TypeError, r"`queries` must be a floating-point tensor, got torch\.int64\. Call"),
        (torch.ones(3, 2).cfloat(), TypeError, r"floating-point tensor, got torch\.complex64"),
        (torch.ones(3, 2) / 0, ValueError, r"`queries` must be finite, got 3 of 3 rows .* is row 0\. "),
        (
            torch.tensor([[0.0, 0.0], [0.0, -torch.inf], [0.0, 1.0], [torch.nan, torch.nan]]),
            ValueError,
            r"got 2 of 4 rows with NaN or infinity, the first is row 1\. Lower the learning rate, clip",
        ),
        (
            torch.tensor([[0.0, 1.0], [1e39, 1.0]], dtype=torch.float64),
            ValueError,
            r"`queries` must lie in the range of float32, got 1 of 2 rows with larger numbers, the first is row 1\.",
        ),
    ],
)
def test_check_embeddings_rejects_other_values(found, kind, sentence):
    with pytest.raises(kind, match=sentence):
        check_embeddings(found, "queries")


def test_as_labels_accepts_tensors_arrays_and_sequences_of_any_integer_type():
    tensors = [torch.tensor([0, 1, 1], dtype=dtype) for dtype in (torch.uint8, torch.int16, torch.int64)]
    arrays = [np.array([0, 1, 1], dtype=dtype) for dtype in (np.int8, np.uint16, np.int64, ">i4")]
    read_only = np.array([0, 1, 1])
    read_only.flags.writeable = False
    for labels in (*tensors, *arrays, read_only, np.array([1, 1, 0])[::-1], [0, 1, 1], (0, 1, 1)):
        found = as_labels(labels, 3)
        assert found.dtype == torch.int64
        assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("found", "kind", "sentence"),
    [
        (torch.zeros(3), TypeError, r"`classes` must be integers, got torch\.float32\. Convert them to int64\."),
        (torch.zeros(3).bool(), TypeError, r"`classes` must be integers, got torch\.bool"),
        (torch.zeros(3).cfloat(), TypeError, r"`classes` must be integers, got torch\.complex64"),
        ([0.0, 1.0, 2.0], TypeError, r"`classes` must be integers, got float64"),
        (["cat", "dog", "cat"], TypeError, r"`classes` must be integers, got <U3"),
        ([0, None, 1], TypeError, r"`classes` must be integers, got object"),
        (None, TypeError, r"`classes` must be integers, got object"),
        ([[0], [1, 2]], TypeError, r"`classes` must be integers, got list that is not an array"),
        ([0, 1], ValueError, r"`classes` must have shape \(3,\), one label per item, got shape \(2,\)\. Pass one"),
        (
            np.array([1, 2, 2**63], np.uint64),
            ValueError,
            r"`classes` must be below 2\*\*63, got a larger number\. Number",
        ),
        (torch.zeros(3, 1).long(), ValueError, r"got shape \(3, 1\)\. Pass one label per item, in order\."),
    ],
)
def test_as_labels_rejects_other_values(found, kind, sentence):
    with pytest.raises(kind, match=sentence):
        as_labels(found, 3, "classes")


@pytest.mark.parametrize("found", [[], (), np.array([]), torch.tensor([]), torch.zeros(0, dtype=torch.int64)])
def test_no_labels_are_an_error_unless_none_are_needed(found):
    with pytest.raises(ValueError, match=r"`classes` must hold at least one label, got none\. Pass one label per item"):
        as_labels(found, name="classes")
    assert torch.equal(as_labels(found, 0), torch.zeros(0, dtype=torch.int64))
