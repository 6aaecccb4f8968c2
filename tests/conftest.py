"""Fixtures for several tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """Do not wait until files are on the disk: only a crash of the system could tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield


@pytest.fixture(scope="session")
def cub100() -> Path:
    """Return the folder of real photographs in the layout of CUB; skip the test without them."""
    root = Path(os.environ.get("UDMLSS_CUB100", Path(__file__).parents[2] / "shared" / "data" / "cub100"))
    if not (root / "images.txt").exists():
        pytest.skip("needs photographs in the layout of CUB: set UDMLSS_CUB100 to their folder")
    return root
