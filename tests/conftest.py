"""What several tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cub100() -> Path:
    """The real photographs that some tests read in place; skipped where they are not."""
    root = Path(os.environ.get("UDMLSS_CUB100", Path(__file__).parents[2] / "shared" / "data" / "cub100"))
    if not (root / "images.txt").exists():
        pytest.skip("needs photographs in CUB's layout: set UDMLSS_CUB100 to their folder")
    return root
