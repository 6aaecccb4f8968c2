"""Matrices that are read in slices of rows, so that the memory needed does not grow with the number of rows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

IN_MEMORY = 2**28  # largest number of elements of a matrix that is copied as a whole: 1 GiB in float32
PAIRS = 2**26  # largest number of pairs of rows that are compared at once: 256 MiB in float32
_ROWS = 2**16  # largest number of rows of a slice
_NUMBERS = 2**25  # largest number of elements of a slice: 128 MiB in float32


def row_slices(matrix: Tensor) -> Iterator[slice]:
    """Yield consecutive slices of the rows, each small enough to be copied and converted."""
    step = max(1, min(_ROWS, _NUMBERS // matrix.shape[1]))
    for begin in range(0, len(matrix), step):
        yield slice(begin, min(begin + step, len(matrix)))


def group_means(matrix: Float[Tensor, "n d"], groups: Int64[Tensor, " n"], n_groups: int) -> Float32[Tensor, "k d"]:
    """Compute the mean row of each group, ignoring rows whose group is negative; 0 for an empty group."""
    sums = matrix.new_zeros(n_groups, matrix.shape[1], dtype=torch.float64)
    groups = groups.to(matrix.device)
    for rows in row_slices(matrix):
        assigned = groups[rows] >= 0
        part = matrix[rows][assigned].float()
        sums += torch.zeros_like(sums, dtype=torch.float32).index_add_(0, groups[rows][assigned], part)
    return (sums / groups[groups >= 0].bincount(minlength=n_groups).clamp(min=1).unsqueeze(1)).float()
