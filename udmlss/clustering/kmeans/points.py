"""Points of k-means: a matrix that is read in float32, or centered and scaled in float64."""

from dataclasses import dataclass
from math import frexp

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from udmlss._chunks import ColumnRange, row_slices

_ORIGIN_ROWS = 2**10  # rows whose median is the origin


@dataclass(frozen=True, eq=False)
class ScaledPoints:
    """Rows of a matrix in float64, minus their median and times a power of two that brings them to a radius of about 1.

    Squares of these rows neither overflow nor underflow, and their differences are exact to float64.

    Attributes:
        matrix: Rows of any floating type.
        origin: Median of some of the rows.
        scale: Power of two.
    """

    matrix: Float[Tensor, "n d"]
    origin: Float64[Tensor, " d"]
    scale: float

    @classmethod
    def of(cls, matrix: Float[Tensor, "n d"], column_range: ColumnRange) -> "ScaledPoints":
        """Choose the origin and the scale of a matrix with this range."""
        origin = matrix[:: max(1, len(matrix) // _ORIGIN_ROWS)].double().median(dim=0).values
        return cls(matrix, origin, 2.0 ** -max(frexp(column_range.radius)[1], -1000))

    @property
    def shape(self) -> torch.Size:
        """Number of rows and columns."""
        return self.matrix.shape

    @property
    def device(self) -> torch.device:
        """Device of the matrix and of the rows."""
        return self.matrix.device

    def numel(self) -> int:
        """Return the number of elements."""
        return self.matrix.numel()

    def __len__(self) -> int:
        return len(self.matrix)

    def __getitem__(self, rows: slice | Tensor) -> Float64[Tensor, "c d"]:
        return self.scaled(self.matrix[rows])

    def scaled(self, rows: Float[Tensor, "c d"]) -> Float64[Tensor, "c d"]:
        """Center and scale other rows in the same way."""
        return rows.to(self.device, torch.float64, copy=True).sub_(self.origin).mul_(self.scale)


Points = Float[Tensor, "n d"] | ScaledPoints


def read(points: Points, rows: slice | Tensor) -> Float[Tensor, "c d"]:
    """Return rows in the type in which k-means compares them: float64 for `ScaledPoints` and float32 for tensors."""
    return points[rows] if isinstance(points, ScaledPoints) else points[rows].float()


def first_members(labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return for each point the index of the first point of its cluster."""
    n = len(labels)
    return torch.full((int(labels.max()) + 1,), n).scatter_reduce(0, labels, torch.arange(n), "amin")[labels]


def differ_from_first(points: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Return for each point whether it differs from the first point of its cluster."""
    first = first_members(labels).to(points.device)
    return torch.cat([(points[rows] != points[first[rows]]).any(dim=1) for rows in row_slices(points)]).cpu()
