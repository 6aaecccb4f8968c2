"""Settings of all tests and of the examples in docstrings."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # is read by torch and faiss on import; tests run on one core each

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "tests" / "support"))
install_import_hook("udmlss", "shape_checker.check")  # tests check the shapes in signatures
pytest_plugins = ["attacks"]


def pytest_collection_finish() -> None:
    """Exclude what was imported from further collections of garbage, which tests of processes call often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (miners of pytorch-metric-learning sample from it)


@pytest.fixture(autouse=True)
def _public_names(doctest_namespace: dict[str, object]) -> None:
    import udmlss  # noqa: PLC0415 (after the import hook was installed)

    names = {name: getattr(udmlss, name) for name in udmlss.__all__}
    doctest_namespace.update(names, torch=torch, nn=nn)
