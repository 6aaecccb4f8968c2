"""What all tests and the docstrings' examples share."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and faiss: the tests run in a process per core

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "tests" / "support"))
install_import_hook("udmlss", "shape_checker.check")  # shapes in signatures are enforced throughout the tests


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (what pytorch-metric-learning's miners draw from)


@pytest.fixture(autouse=True)
def _known(doctest_namespace: dict[str, object]) -> None:
    import udmlss  # noqa: PLC0415 (after the hook)

    names = {name: getattr(udmlss, name) for name in udmlss.__all__}
    doctest_namespace.update(names, torch=torch, nn=nn)
