"""Matrices that are read in slices of rows, so that the memory needed does not grow with the number of rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

CPU = torch.device("cpu")
IN_MEMORY = 2**28  # largest number of elements of a matrix that is copied as a whole: 1 GiB in float32
PAIRS = 2**26  # largest number of pairs of rows that are compared at once: 256 MiB in float32

# Work on a part of a matrix that several processes share. It receives the matrix, the part and the number of parts.
Work = Callable[[Tensor, int, int], Iterator[tuple[Tensor, ...]]]
Store = Callable[..., None]  # receives one result of the work
Share = Callable[[Tensor, Work, Store], None]  # does the work on all parts of a matrix

_ROWS = 2**16  # largest number of rows of a slice
_NUMBERS = 2**25  # largest number of elements of a slice: 128 MiB in float32

_WITHOUT_FLOAT64 = ("mps",)  # Apple's GPUs
_BYTES = 4  # of a number in float32
_MEMORY_FRACTION = 1 / 8  # averages with neighbors take two copies, and the model and its gradients the rest
_LARGEST_NORM = 2.0**60  # squares of larger rows, and sums of them, may overflow float32
_SMALLEST_RADIUS = 2.0**-40  # squared differences within a smaller box may underflow float32
_LARGEST_OFFSET = 32.0  # farther from the origin, in radii of the box, products round differences away in float32


@runtime_checkable
class Matrix(Protocol):
    """A tensor, or an object whose rows are computed when they are read."""

    @property
    def shape(self) -> torch.Size:
        """Number of rows and columns."""
        ...


def row_slices(matrix: Matrix) -> Iterator[slice]:
    """Yield consecutive slices of the rows, each small enough to be copied and converted."""
    n, d = matrix.shape
    step = max(1, min(_ROWS, _NUMBERS // d))
    for begin in range(0, n, step):
        yield slice(begin, min(begin + step, n))


@dataclass(frozen=True, eq=False)
class ColumnRange:
    """The smallest and the largest number of each column of a matrix; NaN if the column has a NaN.

    Attributes:
        low: Smallest numbers, on the CPU.
        high: Largest numbers, on the CPU.
    """

    low: Float64[Tensor, " d"]
    high: Float64[Tensor, " d"]

    @classmethod
    def of(cls, matrix: Float[Tensor, "n d"]) -> "ColumnRange":
        """Read a matrix once and return its range."""
        parts = (matrix[rows].detach() for rows in row_slices(matrix))
        ranges = [(part.amin(dim=0).cpu().double(), part.amax(dim=0).cpu().double()) for part in parts]
        low = reduce(torch.minimum, (low for low, _ in ranges))
        return cls(low, reduce(torch.maximum, (high for _, high in ranges)))

    def union(self, other: "ColumnRange") -> "ColumnRange":
        """Return the range of the rows of two matrices."""
        return ColumnRange(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite in float32."""
        return bool(self.low.float().isfinite().all() and self.high.float().isfinite().all())

    @property
    def is_single_row(self) -> bool:
        """Whether all rows are equal."""
        return torch.equal(self.low, self.high)

    @property
    def radius(self) -> float:
        """Half of the diagonal of the box that holds all rows."""
        return float((self.high - self.low).norm()) / 2

    @property
    def is_extreme(self) -> bool:
        """Whether squares, products or sums of the rows in float32 would overflow, underflow or lose differences."""
        largest_norm = float(torch.maximum(self.low.abs(), self.high.abs()).norm())
        is_far = largest_norm > _LARGEST_OFFSET * self.radius
        return is_far or largest_norm > _LARGEST_NORM or self.radius < _SMALLEST_RADIUS

    @property
    def sum_dtype(self) -> torch.dtype:
        """Type in which rows are summed: float32 is faster, float64 is for a range that is extreme."""
        return torch.float64 if self.is_extreme else torch.float32


def group_means(
    matrix: Float[Tensor, "n d"], groups: Int64[Tensor, " n"], n_groups: int, dtype: torch.dtype = torch.float32
) -> Float32[Tensor, "k d"]:
    """Compute the mean row of each group, ignoring rows whose group is negative; 0 for an empty group.

    Args:
        matrix: Rows of any floating type.
        groups: Group of each row.
        n_groups: Number of groups.
        dtype: Type in which the rows of a slice are summed, the `sum_dtype` of the matrix's range.

    Returns:
        The means, on the device of the matrix.
    """
    device, matrix = matrix.device, with_float64(matrix)
    sums = matrix.new_zeros(n_groups, matrix.shape[1], dtype=torch.float64)
    groups = groups.to(matrix.device)
    for rows in row_slices(matrix):
        assigned = groups[rows] >= 0
        part = matrix[rows][assigned].to(dtype)
        sums += torch.zeros_like(sums, dtype=dtype).index_add_(0, groups[rows][assigned], part)
    sizes = groups[groups >= 0].bincount(minlength=n_groups).clamp(min=1)
    return (sums / sizes.unsqueeze(1)).float().to(device)


def storage_device(shape: Sequence[int], device: torch.device) -> torch.device:
    """Return the device that stores a float32 matrix of this shape, whose rows are used on a device.

    This is the device itself if the matrix takes at most an eighth of its memory, and otherwise the CPU. It is also the
    CPU for a device without float64, such as Apple's MPS.
    """
    if device.type == "cpu" or device.type in _WITHOUT_FLOAT64:
        return CPU
    is_small = prod(shape) * _BYTES <= _MEMORY_FRACTION * device_memory(device)
    return device if is_small else CPU


def device_memory(device: torch.device) -> int:
    """Return the total memory of a GPU in bytes, or 0 for a device of an unknown kind."""
    properties = getattr(getattr(torch, device.type, None), "get_device_properties", None)
    return 0 if properties is None else int(properties(device).total_memory)


def with_float64(matrix: Tensor) -> Tensor:
    """Return the matrix, on the CPU if its device has no float64."""
    return matrix.cpu() if matrix.device.type in _WITHOUT_FLOAT64 else matrix
