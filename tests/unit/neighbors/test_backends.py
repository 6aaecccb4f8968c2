import sys
import warnings
from types import ModuleType

import pytest
import torch
from points import blobs, same_clusters

from udmlss.clustering import k_means
from udmlss.neighbors import backends, nearest
from udmlss.search import SearchIndex


class BrokenFaiss:
    """A finder of modules whose faiss raises an error when it is imported."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, *_):
        if name.split(".")[0] == "faiss":
            raise self.error


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Import faiss anew, and warn anew."""
    monkeypatch.setattr(backends, "faiss_errors", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "faiss"]:
        monkeypatch.delitem(sys.modules, name)


ERRORS = [
    ImportError("libcublas.so.12: cannot open shared object file", name="faiss"),
    OSError("libomp.dylib not found"),
    AttributeError("_ARRAY_API not found"),
    ModuleNotFoundError("No module named 'swig_runtime'", name="swig_runtime"),
    RuntimeError("CUDA driver version is insufficient"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_faiss_that_does_not_load_gives_one_warning_and_the_results_without_it(monkeypatch, error):
    monkeypatch.setattr(sys, "meta_path", [BrokenFaiss(error), *sys.meta_path])
    rows = torch.randn(50, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [SearchIndex(rows).search(rows, 3)[0] for _ in range(2)]
    assert all((ids == found[0]).all() for ids in found)
    assert (found[0][:, 0] == range(50)).all()
    (message,) = [str(each.message) for each in caught]
    assert f"faiss is installed, but does not load ({type(error).__name__}: {error}). Reinstall it" in message


def test_a_faiss_without_a_function_that_is_used_counts_as_broken(monkeypatch):
    old = ModuleType("faiss")
    old.get_num_gpus = lambda: 0
    monkeypatch.setitem(sys.modules, "faiss", old)
    with pytest.warns(
        UserWarning, match=r"does not load \(AttributeError: module 'faiss' has no attribute 'index_factory'\)"
    ):
        assert backends.import_faiss() is None
    assert backends.import_faiss() is None


def test_a_faiss_that_is_not_installed_gives_no_warning_of_a_broken_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert backends.import_faiss() is None
    assert not backends.faiss_errors


def test_k_means_and_searches_on_a_cpu_do_not_import_faiss(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [BrokenFaiss(RuntimeError("imported")), *sys.meta_path])
    points, groups = blobs()
    assert same_clusters(k_means(points, 12), groups)
    assert torch.equal(groups[nearest(points - points.mean(dim=0), 1)[1][:, 0]], groups)
    assert not backends.faiss_errors


def test_a_faiss_that_cannot_exchange_tensors_is_not_used_on_a_gpu(monkeypatch):
    faiss = ModuleType("faiss")
    faiss.get_num_gpus = lambda: 1
    monkeypatch.setattr(backends, "import_faiss", lambda: faiss)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "meta_path", [BrokenFaiss(ImportError("no torch_utils")), *sys.meta_path])
    with pytest.warns(UserWarning, match="no torch_utils"):
        device, search = backends.euclidean_search(torch.device("cuda"))
    assert device.type == "cuda"
    assert search is backends._euclidean
