"""Fixtures for the tests of several losses."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_types(monkeypatch):
    """Disable the types in signatures, so that the library's own checks are reached."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
