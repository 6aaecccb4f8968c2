import numpy as np
import pytest
import torch

from udmlss.search.rows import as_ids, as_unit_rows


def test_rows_of_any_kind_become_unit_vectors_and_stay_unchanged():
    rows = torch.randn(9, 4)
    expected = torch.nn.functional.normalize(rows)
    fixed = rows.numpy().copy()
    fixed.flags.writeable = False
    for given in (rows, rows.double(), fixed, fixed[::-1][::-1], fixed.astype(">f4"), fixed.astype(np.longdouble)):
        torch.testing.assert_close(as_unit_rows(given), expected)
    torch.testing.assert_close(as_unit_rows(1e30 * rows), expected)
    found = as_unit_rows(expected)
    found.zero_()
    assert expected.any()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (np.eye(3, dtype=int), TypeError, "`queries` must be floating-point, got int64"),
        (np.ones(3), ValueError, "`queries` must be a non-empty 2-D tensor"),
        (torch.tensor([[1.0], [torch.nan]]), ValueError, "`queries` must be finite, got 1 of 2 rows"),
    ],
)
def test_what_is_not_a_matrix_of_numbers_is_an_error(given, kind, message):
    with pytest.raises(kind, match=message):
        as_unit_rows(given, "queries")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (["a", "b", "a"], ValueError, "`ids` must be unique, got 'a' 2 times"),
        (["a", "b"], ValueError, r"`ids` must have 3 elements, one per embedding, got shape \(2,\)"),
        (np.zeros((3, 1), dtype=int), ValueError, r"`ids` must have 3 elements, one per embedding, got shape \(3, 1\)"),
        (
            ["a", "b", 3],
            TypeError,
            "`ids` must be all integers, or all strings or paths, got elements of type int, str",
        ),
        ([1, 2, True], TypeError, "`ids` must be all integers, or all strings or paths, got elements of type bool"),
        (
            np.array([1, 2, 2**63], dtype=np.uint64),
            ValueError,
            "`ids` must lie in the range of int64, got 92233720",
        ),
        ([1, 2, -(2**70)], ValueError, "`ids` must lie in the range of int64, got -1180591620717411303424"),
        ("abc", TypeError, "`ids` must be a sequence, got str. Pass a list"),
        (np.array([1.0, 2.0, 3.0]), TypeError, "`ids` must be integers or strings, got an array of float64"),
    ],
)
def test_wrong_ids_are_an_error(given, kind, message):
    with pytest.raises(kind, match=message):
        as_ids(given, 3)
