"""Searches in which several processes take part."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from udmlss._chunks import Share

_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def share_searches(share: Share | None) -> Iterator[None]:
    """Let several processes search large sets in the `with` block, by the `share` of `run_with_helpers`."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def current_share() -> Share | None:
    """Return the `share` of the `with` block, or None outside of one and in a single process."""
    return _share.get()
