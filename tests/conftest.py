"""Fixtures for several tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cub100() -> Path:
    """Return the folder of real photographs in the layout of CUB; skip the test without them."""
    root = Path(os.environ.get("UDMLSS_CUB100", Path(__file__).parents[2] / "shared" / "data" / "cub100"))
    if not (root / "images.txt").exists():
        pytest.skip("needs photographs in the layout of CUB: set UDMLSS_CUB100 to their folder")
    return root
