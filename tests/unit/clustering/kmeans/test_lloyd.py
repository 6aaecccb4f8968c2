import sys
from contextlib import nullcontext
from types import ModuleType

import numpy as np
import pytest
import torch
from points import blobs, noise, objective, same_clusters
from torch.utils._python_dispatch import TorchDispatchMode

from udmlss import ClusterPseudoLabeler, _chunks, label_free_scores, model_selection
from udmlss.clustering.kmeans import cluster_means, initial_centers, k_means, lloyd
from udmlss.neighbors import backends
from udmlss.neighbors.backends import euclidean_search, has_gpu

faiss = pytest.importorskip("faiss")


@pytest.fixture
def _slices(monkeypatch):
    """Read points in slices of 64 rows, and start k-means from a sample."""
    monkeypatch.setattr(_chunks, "_ROWS", 64)
    monkeypatch.setattr(initial_centers, "IN_MEMORY", 1024)


def lloyd_by_hand(points, centers, max_iter):
    """Assign and average in float64, one point after the other."""
    points, centers = points.double().numpy(), centers.double().numpy()
    for iteration in range(max_iter + 1):
        labels = np.array([np.square(points_row - centers).sum(axis=1).argmin() for points_row in points])
        if iteration < max_iter:
            centers = np.stack([points[labels == label].mean(axis=0) for label in range(len(centers))])
    return labels.tolist()


@pytest.mark.parametrize("k", [2, 3, 4, 7, 40])
def test_the_clusters_are_those_of_lloyd_by_hand(k):
    points = noise(150, 4)
    for max_iter in (0, 1, 4, 20):
        labels, _, _ = lloyd.lloyd(points, points[:k], max_iter)
        assert labels.tolist() == lloyd_by_hand(points, points[:k], max_iter)


@pytest.mark.parametrize(("k", "d"), [(30, 2), (100, 6), (300, 16)])
def test_comparing_only_with_moved_centers_saves_distances_and_changes_no_cluster(monkeypatch, k, d):
    n_distances = []
    search = euclidean_search(torch.device("cpu"))[1]

    def spy(points, centers, n_nearest):
        n_distances.append(len(points) * len(centers))
        return search(points, centers, n_nearest)

    monkeypatch.setattr(lloyd, "euclidean_search", lambda device, dtype: (device, spy))
    for seed in range(3):
        points = noise(900, d, seed)
        found, centers, _ = lloyd.lloyd(points, points[:k], 40)
        saved = sum(n_distances)
        n_distances.clear()
        with monkeypatch.context() as patch:
            search_all = lambda points, centers, *_: lloyd._assign_to_all(points, centers, 1, spy)  # noqa: E731
            patch.setattr(lloyd, "_assign_to_candidates", search_all)
            expected, means, _ = lloyd.lloyd(points, points[:k], 40)
        assert torch.equal(found, expected)
        torch.testing.assert_close(centers, means)
        assert saved < 0.75 * sum(n_distances)
        n_distances.clear()


def test_the_assignment_and_the_sums_are_true_after_each_iteration(monkeypatch):
    assign, few_moved = lloyd._assign, []

    def checked(points, centers, moved, assignment, sums, **keywords):
        n_changed = assign(points, centers, moved, assignment, sums, **keywords)
        squares = torch.cdist(points, centers).square()
        distances, labels = squares.min(dim=1)
        assert torch.equal(assignment.labels, labels)
        assert torch.equal(sums.labels, labels)
        torch.testing.assert_close(assignment.distances, distances, rtol=1e-4, atol=1e-4)
        others = squares.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1)
        assert (assignment.lower_bounds <= others + 1e-4).all()
        members = torch.nn.functional.one_hot(labels, len(centers)).T.double()
        torch.testing.assert_close(sums.sums, members @ points.double())
        few_moved.append(2 * int(moved.sum()) <= len(moved))
        return n_changed

    monkeypatch.setattr(lloyd, "_assign", checked)
    for seed in range(3):
        points = noise(400, 3, seed)
        lloyd.lloyd(points, points[:60], 30)
    assert any(few_moved)
    assert not all(few_moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("_slices")
def test_the_objective_is_that_of_faiss(dtype):
    points = noise(900).to(dtype)
    rows = points.float().numpy()
    for max_iter in (1, 5, 25):
        theirs = faiss.Kmeans(8, 20, niter=max_iter)
        theirs.train(rows, init_centroids=rows[:20])
        expected = objective(points, torch.from_numpy(theirs.assign(rows)[1]))
        found = k_means(points, 20, start=points[:20].float(), max_iter=max_iter)
        assert objective(points, found) == pytest.approx(expected, rel=1e-6)


def test_the_size_of_the_slices_changes_nothing(monkeypatch):
    points = noise(70)
    expected, means, _ = lloyd.lloyd(points, points[:9], 6)
    for rows in (1, 7, 64):
        monkeypatch.setattr(_chunks, "_ROWS", rows)
        labels, centers, _ = lloyd.lloyd(points, points[:9], 6)
        assert torch.equal(labels, expected)
        torch.testing.assert_close(centers, means, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("_slices")
def test_a_mapped_file_gives_the_clusters_of_a_tensor_in_memory(tmp_path, dtype):
    array = noise().numpy().astype(dtype)
    np.save(tmp_path / "rows.npy", array)
    mapped = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="r+"))
    assert torch.equal(k_means(mapped, 9), k_means(torch.from_numpy(array).float(), 9))
    ours, theirs = (ClusterPseudoLabeler(9).label(rows) for rows in (mapped, torch.from_numpy(array)))
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.centers, theirs.centers)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), array)


def test_iterations_end_when_no_point_changes_its_cluster(monkeypatch):
    n_changed, assign = [], lloyd._assign
    monkeypatch.setattr(lloyd, "_assign", lambda *args, **kw: n_changed.append(assign(*args, **kw)) or n_changed[-1])
    points, groups = blobs()
    means = cluster_means(points, groups, 12)
    labels, centers, _ = lloyd.lloyd(points, means, 100)
    assert torch.equal(labels, groups)
    assert n_changed == [len(points), 0]
    torch.testing.assert_close(centers, means)


@pytest.mark.parametrize("in_memory", [initial_centers.IN_MEMORY, 4096], ids=["all points", "sample"])
def test_a_warm_start_needs_at_most_half_the_iterations(monkeypatch, in_memory):
    monkeypatch.setattr(initial_centers, "IN_MEMORY", in_memory)
    points, k = blobs(k=40, each=50, d=8, scale=1)[0], 40
    later = points + 0.1 * noise(2000, seed=5)
    means = cluster_means(later, k_means(points, k), k)

    def reached(max_iter, start):
        return objective(later, k_means(later, k, start=start, max_iter=max_iter))

    last = reached(25, None), reached(25, means)
    good_enough = 1.0005 * max(last)  # the two may end in different minima
    cold = next(n for n in range(1, 26) if reached(n, None) <= good_enough)
    assert max(last) < 1.02 * min(last)
    assert reached(cold // 2, means) <= good_enough


@pytest.mark.usefixtures("_slices")
def test_an_empty_cluster_takes_half_of_a_largest_cluster():
    points = torch.cat([noise(200, 2), noise(20, 2) + 50])
    start = torch.tensor([[0.0, 0], [50, 50], [900, 900]])
    labels, _, _ = lloyd.lloyd(points, start, 10)
    assert labels.bincount()[1] == 20
    assert 60 < labels.bincount()[0] < 140
    assert objective(points, labels) < 0.8 * objective(points, (points[:, 0] > 25).long())


def test_the_halves_of_a_split_cluster_are_on_both_sides_of_its_mean():
    sums, sizes = torch.tensor([[8.0, 8], [0, 0], [30, 60]], dtype=torch.float64), torch.tensor([2, 0, 30])
    centers = lloyd._means(torch.full((3, 2), 9.0), sums, sizes)
    lloyd._split_largest(centers, sizes)
    assert centers[0].tolist() == [4, 4]
    torch.testing.assert_close((centers[1] + centers[2]) / 2, torch.tensor([1.0, 2.0]))
    assert not torch.equal(centers[1], centers[2])


def test_clusters_of_one_point_are_not_split():
    sums, sizes = torch.eye(5, 2, dtype=torch.float64), torch.tensor([1, 1, 0, 0, 0])
    centers = lloyd._means(torch.full((5, 2), 9.0), sums, sizes)
    lloyd._split_largest(centers, sizes)
    assert centers.tolist() == [[1, 0], [0, 1], [9, 9], [9, 9], [9, 9]]


class LargestTensor(TorchDispatchMode):
    """Measures the largest tensor that is created, in bytes."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.bytes = {tensor.untyped_storage().data_ptr() for tensor in known}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("_slices")
def test_no_tensor_as_large_as_the_embeddings_is_created(monkeypatch, dtype):
    monkeypatch.setattr(model_selection, "_RANK_SAMPLE", 128)
    points = noise(4000, 128).to(dtype)
    labels = torch.arange(4000) % 5
    works = {
        "k_means": lambda: k_means(points, 4, max_iter=3),
        "cluster_means": lambda: cluster_means(points, labels, 5),
        "label": lambda: ClusterPseudoLabeler(4, max_iter=3).label(points),
        "function": lambda: ClusterPseudoLabeler(lambda _: labels).label(points),
        "label_free_scores": lambda: label_free_scores(points, points[:20].float(), torch.arange(20)),
    }
    for name, work in works.items():
        with LargestTensor(points) as largest:
            work()
        assert largest.bytes < points.numel() * points.element_size() / 4, name


@pytest.fixture
def gpu_faiss(monkeypatch):
    """A faiss module that reports a GPU, whose search on the GPU takes tensors and runs on the CPU."""
    fake = ModuleType("faiss")
    fake.__dict__.update(vars(faiss))
    fake.get_num_gpus = lambda: 1
    fake.StandardGpuResources = lambda: "resources"
    fake.searches = []

    def knn_gpu(resources, points, centers, k, *, device):
        assert (resources, device) == ("resources", 1)
        assert points.is_contiguous()
        assert points.dtype == centers.dtype == torch.float32
        fake.searches.append(len(points))
        return tuple(map(torch.from_numpy, faiss.knn(points.numpy(), centers.numpy(), k)))

    fake.knn_gpu = knn_gpu
    monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", ModuleType("faiss.contrib.torch_utils"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(backends, "import_faiss", lambda: fake)
    return fake


def test_faiss_searches_on_the_gpu_that_has_the_rows(gpu_faiss, monkeypatch):
    assert has_gpu(gpu_faiss)
    assert euclidean_search(torch.device("cpu"))[0].type == "cpu"
    device, search = euclidean_search(torch.device("cuda:1"))
    assert device == torch.device("cuda:1")
    _, found = search(noise(), noise(9), 1)
    assert torch.equal(found.flatten(), torch.cdist(noise(), noise(9)).argmin(dim=1))
    assert not has_gpu(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_gpu(gpu_faiss)


def test_all_searches_of_k_means_run_on_the_gpu(gpu_faiss, monkeypatch):
    for module in (lloyd, initial_centers):
        monkeypatch.setattr(
            module,
            "euclidean_search",
            lambda device, dtype: (device, euclidean_search(torch.device("cuda:1"), dtype)[1]),
        )
    points, groups = blobs()
    assert same_clusters(k_means(points, 12), groups)
    assert set(gpu_faiss.searches) == {len(points)}


@pytest.mark.skipif(not has_gpu(faiss), reason="needs a GPU and faiss-gpu")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_real_gpu_gives_the_clusters_of_the_cpu(device):
    points = noise(5000, 32)
    expected, _, _ = lloyd.lloyd(points, points[:20], 10)
    found = k_means(points.to(device), 20, start=points[:20], max_iter=10)
    assert objective(points, found) == pytest.approx(objective(points, expected), rel=1e-5)
    pseudo = ClusterPseudoLabeler(20).label(points.to(device))
    assert pseudo.labels.device.type == pseudo.centers.device.type == "cpu"
