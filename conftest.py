"""What the docstrings' examples may take as known."""

import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "tests" / "support"))
install_import_hook("udmlss", "shape_checker.check")  # shapes in signatures are enforced throughout the tests


@pytest.fixture(autouse=True)
def _known(doctest_namespace):
    import udmlss  # noqa: PLC0415 (after the hook)

    names = {name: getattr(udmlss, name) for name in udmlss.__all__}
    doctest_namespace.update(names, torch=torch, nn=nn)
