import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from points import blobs, noise, objective
from torch.utils._python_dispatch import TorchDispatchMode

from udmlss import ClusterPseudoLabeler, label_free_scores
from udmlss.clustering import lloyd
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.neighbors.backends import euclidean_search, has_gpu

faiss = pytest.importorskip("faiss")


def lloyd_by_hand(points, centroids, max_iter):
    """Assign and average in float64, one point after the other."""
    points, centroids = points.double().numpy(), centroids.double().numpy()
    for last in range(max_iter + 1):
        labels = [int(np.argmin([((point - each) ** 2).sum() for each in centroids])) for point in points]
        if last < max_iter:
            members = [points[np.array(labels) == each] for each in range(len(centroids))]
            centroids = np.stack([mine.mean(axis=0) for mine in members])
    return labels


@pytest.fixture
def parts(monkeypatch):
    """Whatever is read is read in parts of 64 rows, by k-means as well."""
    monkeypatch.setattr(chunking, "_ROWS", 64)
    monkeypatch.setattr(starting, "IN_MEMORY", 1024)


@pytest.fixture(params=["faiss", "scikit-learn"])
def backend(request):
    return faiss if request.param == "faiss" else None


@pytest.fixture
def visits(monkeypatch):
    """The number of labels that changed in each pass over the points."""
    noted, visit = [], lloyd._visit

    def spy(*args, **keywords):
        noted.append(visit(*args, **keywords))
        return noted[-1]

    monkeypatch.setattr(lloyd, "_visit", spy)
    return noted


@pytest.mark.parametrize("k", [2, 3, 4, 7, 40])
@pytest.mark.parametrize("max_iter", [0, 1, 4, 20])
def test_the_clusters_are_those_of_lloyd_by_hand(backend, k, max_iter):
    points = noise(150, 4)
    labels, _ = lloyd.lloyd(points, points[:k], max_iter, backend)
    assert labels.tolist() == lloyd_by_hand(points, points[:k], max_iter)


class Searching:
    """Counts the distances that a search computes."""

    def __init__(self, monkeypatch):
        self.distances = []
        monkeypatch.setattr(lloyd, "euclidean_search", self.euclidean_search)

    def euclidean_search(self, module, device):
        device, closest = euclidean_search(module, device)

        def counted(rows, centroids, k):
            self.distances.append(len(rows) * len(centroids))
            return closest(rows, centroids, k)

        return device, counted


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "d"), [(30, 2), (100, 6), (300, 16)])
def test_leaving_out_centroids_that_stayed_changes_no_cluster_and_saves_distances(backend, monkeypatch, k, d, seed):
    points, searching = noise(900, d, seed), Searching(monkeypatch)
    closest = searching.euclidean_search(backend, torch.device("cpu"))[1]
    found, centroids = lloyd.lloyd(points, points[:k], 40, backend)
    saved = sum(searching.distances)
    monkeypatch.setattr(lloyd, "_among", lambda points, centroids, *_: lloyd._among_all(points, centroids, 1, closest))
    searching.distances.clear()
    expected, means = lloyd.lloyd(points, points[:k], 40, backend)
    assert torch.equal(found, expected)
    torch.testing.assert_close(centroids, means)
    assert saved < 0.75 * sum(searching.distances)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_of_points_is_true_after_each_pass(backend, monkeypatch, seed):
    points, visit, partial = noise(400, 3, seed), lloyd._visit, []

    def checked(points, centroids, moved, known, sums, **keywords):
        n_changed = visit(points, centroids, moved, known, sums, **keywords)
        squares = torch.cdist(points, centroids).square()
        nearest, labels = squares.min(dim=1)
        assert torch.equal(known.labels, labels)
        assert torch.equal(sums.holding, labels)
        torch.testing.assert_close(known.nearest, nearest, rtol=1e-4, atol=1e-4)
        others = squares.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1)
        assert (known.others <= others + 1e-4).all()
        members = torch.nn.functional.one_hot(labels, len(centroids)).T.double()
        torch.testing.assert_close(sums.of, members @ points.double())
        partial.append(2 * int(moved.sum()) <= len(moved))
        return n_changed

    monkeypatch.setattr(lloyd, "_visit", checked)
    lloyd.lloyd(points, points[:60], 30, backend)
    assert any(partial)
    assert not all(partial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("max_iter", [1, 5, 25])
@pytest.mark.usefixtures("parts")
def test_the_objective_is_that_of_faiss_from_the_same_start(dtype, max_iter):
    points = noise(900).to(dtype)
    held = points.float().numpy()
    theirs = faiss.Kmeans(8, 20, niter=max_iter)
    theirs.train(held, init_centroids=held[:20])
    expected = objective(points, torch.from_numpy(theirs.assign(held)[1]))
    found = k_means(points, 20, start=points[:20].float(), max_iter=max_iter)
    assert objective(points, found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_the_size_of_the_parts_changes_nothing(backend, monkeypatch, rows):
    points = noise()
    whole, centroids = lloyd.lloyd(points, points[:9], 6, backend)
    monkeypatch.setattr(chunking, "_ROWS", rows)
    labels, found = lloyd.lloyd(points, points[:9], 6, backend)
    assert torch.equal(labels, whole)
    torch.testing.assert_close(found, centroids, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("parts")
def test_a_mapped_file_is_clustered_as_the_same_numbers_in_memory(tmp_path, dtype):
    array = noise().numpy().astype(dtype)
    np.save(tmp_path / "rows.npy", array)
    mapped = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="r+"))
    assert torch.equal(k_means(mapped, 9), k_means(torch.from_numpy(array).float(), 9))
    ours, theirs = (ClusterPseudoLabeler(9).label(each) for each in (mapped, torch.from_numpy(array)))
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.centers, theirs.centers)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), array)


def test_iterations_end_when_no_point_moves(backend, visits):
    points, group = blobs()
    labels, centroids = lloyd.lloyd(points, cluster_means(points, group, 12), 100, backend)
    assert torch.equal(labels, group)
    assert visits == [len(points), 0]
    torch.testing.assert_close(centroids, cluster_means(points, group, 12))


@pytest.mark.parametrize("held", [starting.IN_MEMORY, 4096], ids=["started from all", "from a sample"])
def test_a_round_from_good_centroids_needs_at_most_half_the_iterations(monkeypatch, held):
    monkeypatch.setattr(starting, "IN_MEMORY", held)
    points, k = blobs(k=40, each=50, d=8, apart=1)[0], 40
    later = points + 0.1 * noise(2000, seed=5)
    good = cluster_means(later, k_means(points, k), k)

    def reached(max_iter, start):
        return objective(later, k_means(later, k, start=start, max_iter=max_iter))

    ends = reached(25, None), reached(25, good)
    enough = 1.0005 * max(ends)  # they may end in two minima
    cold = next(n for n in range(1, 26) if reached(n, None) <= enough)
    assert max(ends) < 1.02 * min(ends)
    assert reached(cold // 2, good) <= enough


@pytest.mark.usefixtures("parts")
def test_an_empty_cluster_takes_half_of_one_of_the_largest(backend):
    points = torch.cat([noise(200, 2), noise(20, 2) + 50])
    start = torch.tensor([[0.0, 0], [50, 50], [900, 900]])
    labels, _ = lloyd.lloyd(points, start, 10, backend)
    assert labels.bincount()[1] == 20
    assert 60 < labels.bincount()[0] < 140
    assert objective(points, labels) < 0.8 * objective(points, (points[:, 0] > 25).long())


def test_the_halves_of_a_split_cluster_start_on_both_sides_of_its_mean():
    sums = torch.tensor([[8.0, 8], [0, 0], [30, 60]], dtype=torch.float64)
    centroids = lloyd._moved(torch.full((3, 2), 9.0), sums, torch.tensor([2, 0, 30]))
    assert centroids[0].tolist() == [4, 4]
    torch.testing.assert_close((centroids[1] + centroids[2]) / 2, torch.tensor([1.0, 2.0]))
    assert not torch.equal(centroids[1], centroids[2])


def test_clusters_of_one_are_not_split_and_more_empty_ones_than_others_stay_where_they_were():
    centroids = torch.full((5, 2), 9.0)
    found = lloyd._moved(centroids, torch.eye(5, 2, dtype=torch.float64), torch.tensor([1, 1, 0, 0, 0]))
    assert found.tolist() == [[1, 0], [0, 1], [9, 9], [9, 9], [9, 9]]


class Largest(TorchDispatchMode):
    """Notes the most bytes of any tensor that is made."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.bytes = {each.untyped_storage().data_ptr() for each in known}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("parts")
def test_nothing_as_large_as_the_embeddings_is_made(monkeypatch, dtype):
    monkeypatch.setattr(judging, "_JUDGED", 128)
    points = noise(4000, 128).to(dtype)
    labels = torch.arange(4000) % 5
    works = {
        "k-means": lambda: k_means(points, 4, max_iter=3),
        "means": lambda: cluster_means(points, labels, 5),
        "label": lambda: ClusterPseudoLabeler(4, max_iter=3).label(points),
        "judge": lambda: label_free_scores(points, points[:20].float(), torch.arange(20)),
    }
    for name, work in works.items():
        with Largest(points) as largest:
            work()
        assert largest.bytes < points.numel() * points.element_size() / 4, name


@pytest.fixture
def on_gpu(monkeypatch):
    """A faiss that says it has a GPU, whose search takes tensors and is the CPU's."""
    fake = ModuleType("faiss")
    fake.__dict__.update(vars(faiss))
    fake.get_num_gpus = lambda: 1
    fake.StandardGpuResources = lambda: "resources"
    fake.searches = []

    def knn_gpu(resources, rows, centroids, k):
        assert resources == "resources"
        assert rows.is_contiguous()
        assert rows.dtype == centroids.dtype == torch.float32
        fake.searches.append(len(rows))
        return tuple(map(torch.from_numpy, faiss.knn(rows.numpy(), centroids.numpy(), k)))

    fake.knn_gpu = knn_gpu
    monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", ModuleType("faiss.contrib.torch_utils"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(clustering, "_import_faiss", lambda _: fake)
    return fake


def test_a_gpu_is_used_where_faiss_and_torch_have_one(on_gpu, monkeypatch):
    assert has_gpu(on_gpu)
    device, closest = euclidean_search(on_gpu, torch.device("cpu"))
    assert device.type == "cuda"
    _, found = closest(noise(), noise(9), 1)
    assert torch.equal(found.flatten(), torch.cdist(noise(), noise(9)).argmin(dim=1))
    assert not has_gpu(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_gpu(on_gpu)


def test_a_gpu_draws_the_start_and_clusters(on_gpu, monkeypatch):
    for module in (lloyd, starting):
        monkeypatch.setattr(
            module, "euclidean_search", lambda module, device: (device, euclidean_search(module, device)[1])
        )
    points, group = blobs()
    pairs = set(zip(k_means(points, 12).tolist(), group.tolist(), strict=True))
    assert len(pairs) == 12
    assert set(on_gpu.searches) == {len(points)}


@pytest.mark.skipif(not has_gpu(faiss), reason="needs a GPU and faiss-gpu")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_real_gpu_gives_the_clusters_of_the_processor(device):
    points = noise(5000, 32)
    expected, _ = lloyd.lloyd(points, points[:20], 10, None)
    found = k_means(points.to(device), 20, start=points[:20], max_iter=10)
    assert objective(points, found) == pytest.approx(objective(points, expected), rel=1e-5)
    pseudo = ClusterPseudoLabeler(20).label(points.to(device))
    assert pseudo.labels.device.type == pseudo.centers.device.type == "cpu"
