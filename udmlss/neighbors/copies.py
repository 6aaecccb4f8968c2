"""Copies of equal rows."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from udmlss._chunks import row_slices

_SEED = 0  # of the coefficients, which only distribute the keys


def limit_copies(embeddings: Float[Tensor, "n d"], most: int) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " n"]] | None:
    """Remove further copies of rows that occur more than `most` times.

    Args:
        embeddings: Rows of any floating type, in memory or mapped from a file.
        most: Number of copies that are retained, at least 1.

    Returns:
        The indices of the retained rows, in ascending order; and for each row its position among the retained rows,
        or the position of its first copy if it was removed. None if no row is removed.
    """
    keys, order = torch.cat([_keys(embeddings[rows]) for rows in row_slices(embeddings)]).sort(stable=True)
    places = (keys[most:] == keys[:-most]).nonzero().flatten() + most
    further, first = order[places], order[torch.searchsorted(keys, keys[places])]
    is_equal = _equal(embeddings, further, first)  # different rows may have the same key
    if not is_equal.any():
        return None
    is_retained = torch.ones_like(order, dtype=torch.bool)
    is_retained[further[is_equal]] = False
    positions = is_retained.cumsum(0) - 1
    positions[further[is_equal]] = positions[first[is_equal]]
    return is_retained.nonzero().flatten(), positions


def _keys(rows: Float[Tensor, "c d"]) -> Int64[Tensor, " c"]:
    """Return a number for each row, which is the same for equal rows and, almost certainly, differs for others."""
    generator = torch.Generator().manual_seed(_SEED)
    coefficients = torch.randint(2**62, (rows.shape[1],), generator=generator).to(rows.device) * 2 + 1
    bits = (rows.detach().float() + 0.0).view(torch.int32)  # the sum is 0 for both 0 and -0
    return (bits * coefficients).sum(dim=1)  # integers overflow in the same way in any order of the sum


def _equal(
    embeddings: Float[Tensor, "n d"], one: Int64[Tensor, " m"], other: Int64[Tensor, " m"]
) -> Bool[Tensor, " m"]:
    step = 2**13
    parts = zip(one.split(step), other.split(step), strict=True)
    return torch.cat([(embeddings[a] == embeddings[b]).all(dim=1) for a, b in parts] or [one.bool()])
