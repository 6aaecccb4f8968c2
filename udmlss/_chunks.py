"""Matrices read in parts, so that what memory holds does not grow with their rows."""

from collections.abc import Iterator

from torch import Tensor

IN_MEMORY = 2**28  # numbers that are held whole as float32: 1 GiB
PAIRS = 2**26  # pairs of rows compared at once: 256 MiB of float32
_ROWS, _NUMBERS = 2**16, 2**25  # of one part: at most 128 MiB as float32


def row_slices(matrix: Tensor) -> Iterator[slice]:
    """Yield slices of the rows, in order and each small enough to be copied and converted."""
    step = max(1, min(_ROWS, _NUMBERS // matrix.shape[1]))
    for begin in range(0, len(matrix), step):
        yield slice(begin, min(begin + step, len(matrix)))
