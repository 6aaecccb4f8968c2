import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from points import blobs, noise, objective, same_clusters
from sklearn.cluster import KMeans

from udmlss import _chunks
from udmlss.clustering.kmeans import cluster_means, clusters, k_means

INPUTS = {
    "blobs": (blobs(6, 15)[0], 6),
    "one dimension": (noise(200, 1), 7),
    "as many clusters as rows": (noise(12, 3), 12),
    "nearly as many clusters as rows": (noise(40, 3), 37),
    "two rows": (noise(2, 5), 2),
    "tiny": (noise() * 1e-12, 10),
    "huge": (noise() * 1e12, 10),
    "far from the origin": (noise() + 100, 10),
    "unit length": (torch.nn.functional.normalize(noise()), 20),
    "all rows but one equal": (torch.cat([torch.zeros(50, 2), torch.ones(1, 2)]), 2),
    "double": (noise().double(), 10),
    "half": (noise().half(), 10),
    "bfloat16": (noise().bfloat16(), 10),
}


def test_each_row_has_a_cluster_and_each_cluster_a_row(capfd):
    for name, (points, k) in INPUTS.items():
        labels = k_means(points, k)
        assert labels.dtype == torch.int64, name
        assert labels.shape == (len(points),), name
        assert labels.unique().tolist() == list(range(k)), name
    assert capfd.readouterr() == ("", "")


def test_separate_groups_become_the_clusters_with_any_seed():
    points, groups = blobs(6, 15)
    for seed in range(8):
        assert same_clusters(k_means(points, 6, seed=seed), groups)


def test_separate_groups_have_the_order_of_the_initial_centers():
    points, groups = blobs(6, 15)
    start = torch.stack([points[groups == group][0] for group in range(6)])
    assert torch.equal(k_means(points, 6, start=start), groups)


def test_each_row_ends_nearest_to_the_mean_of_its_own_cluster():
    points = noise(120, 3)
    labels = k_means(points, 5, max_iter=300)
    means = torch.stack([points[labels == label].mean(dim=0) for label in range(5)])
    distances = torch.cdist(points, means)
    own = distances.gather(1, labels.unsqueeze(1)).squeeze(1)
    assert (own <= distances.amin(dim=1) + 1e-5).all()


def test_the_objective_equals_that_of_scikit_learn():
    points = noise(400, 8)
    start = points[:12]
    theirs = KMeans(12, init=start.numpy(), n_init=1, max_iter=25).fit(points.numpy())
    assert objective(points, k_means(points, 12, start=start)) == pytest.approx(theirs.inertia_, rel=0.01)
    best = KMeans(12, n_init=5, random_state=0).fit(points.numpy()).inertia_
    assert objective(points, k_means(points, 12)) < 1.08 * best


def test_all_rows_are_used():
    points = torch.cat([noise(6000, 2), torch.tensor([[1000.0, 1000.0]])])  # faiss.Kmeans samples 256 per cluster
    start = torch.stack([points[0], points[-1]])
    assert k_means(points, 2, start=start).bincount().tolist() == [6000, 1]


def test_too_few_different_rows_give_fewer_clusters_and_a_warning():
    distinct = noise(30, 8)
    sentence = r"`n_clusters=50` needs 50 embeddings that differ, got 30\. There are 30 clusters\."
    with pytest.warns(UserWarning, match=sentence):
        labels = k_means(distinct.repeat_interleave(20, dim=0), 50)
    assert labels.unique().tolist() == list(range(30))
    assert same_clusters(labels, torch.arange(30).repeat_interleave(20))


def test_initial_centers_far_from_all_rows_leave_no_cluster_empty():
    labels = k_means(noise(), 10, start=torch.full((10, 8), 1e3))
    assert (labels.bincount(minlength=10) > 0).all()


def test_fewer_initial_centers_than_clusters_are_accepted():
    points, groups = blobs(6, 15)
    for rows in (1, 3, 6):
        start = torch.stack([points[groups == group].mean(dim=0) for group in range(rows)])
        labels = k_means(points, 6, start=start)
        assert labels.unique().tolist() == list(range(6))
        for group in range(rows):
            assert (labels[groups == group] == group).any()


@pytest.fixture
def _untyped(monkeypatch):
    """Without the types of the signatures, which reject some arguments before our own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("shape", [(7, 4), (6, 3)])
@pytest.mark.usefixtures("_untyped")
def test_rejects_initial_centers_of_another_shape(shape):
    sentence = rf"`start` must have shape \(6, 4\) or fewer rows, got \({shape[0]}, {shape[1]}\)\. Pass the centers"
    with pytest.raises(ValueError, match=sentence):
        k_means(noise(90, 4), 6, start=torch.zeros(shape))


def test_rejects_initial_centers_that_are_not_finite():
    start = blobs(6, 15)[0][:6].clone()
    start[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"`start` must be finite, got 1 of 6 rows .* the first is row 2"):
        k_means(blobs(6, 15)[0], 6, start=start)


def test_an_empty_cluster_is_filled(monkeypatch):
    points = torch.tensor([[0.0], [0.1], [5.0], [0.3]])
    monkeypatch.setattr(clusters, "lloyd", lambda *_: (torch.tensor([0, 0, 0, 2]), None, 9.0))
    assert k_means(points, 3).tolist() == [0, 0, 1, 2]


def test_equal_seeds_give_equal_labels_and_others_give_other_labels():
    points = noise()
    assert torch.equal(k_means(points, 10, seed=5), k_means(points, 10, seed=5))
    assert not same_clusters(k_means(points, 10, seed=5), k_means(points, 10, seed=6))


def test_does_not_use_global_random_state():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 (the global one)
    before = k_means(noise(), 10)
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())
    torch.rand(1)
    np.random.random()  # noqa: NPY002
    assert torch.equal(before, k_means(noise(), 10))


def test_does_not_change_its_arguments():
    points, start = noise(), noise()[:10].clone()
    k_means(points, 10, start=start)
    assert torch.equal(points, noise())
    assert torch.equal(start, noise()[:10])


def test_accepts_gradients_transposed_memory_and_numpy_integers():
    points = noise()
    expected = k_means(points, 10)
    assert torch.equal(expected, k_means(points.clone().requires_grad_(), 10))
    assert torch.equal(expected, k_means(points.T.contiguous().T, 10))
    assert torch.equal(expected, k_means(points, np.int64(10), max_iter=np.int32(25), seed=np.uint8(0)))


@pytest.mark.parametrize(
    ("points", "settings", "kind", "sentence"),
    [
        (noise(), {"n_clusters": 1}, ValueError, r"`n_clusters` must be at least 2, got 1\. Raise it\."),
        (noise(), {"n_clusters": 2.5}, TypeError, r"`n_clusters` must be an integer, got 2\.5 of type float\."),
        (noise(5, 2), {"n_clusters": 6}, ValueError, r"`n_clusters=6` needs at least 6 images, got 5\. Lower it"),
        (noise(), {"seed": -1}, ValueError, r"`seed` must be at least 0, got -1\."),
        (noise(), {"max_iter": -1}, ValueError, r"`max_iter` must be at least 0, got -1\."),
        (torch.ones(9, 3), {}, ValueError, r"Embeddings must differ, got 9 equal rows: the model has collapsed\."),
        (torch.zeros(9, 3), {}, ValueError, r"Embeddings must differ, got 9 equal rows"),
        (torch.zeros(0, 3), {}, ValueError, r"`embeddings` must be a non-empty 2-D tensor, got shape \(0, 3\)\."),
        (torch.tensor([[1.0], [torch.nan], [torch.inf]]), {}, ValueError, r"must be finite, got 2 of 3 .* row 1\. "),
        (torch.arange(6).view(6, 1), {}, TypeError, r"must be a floating-point tensor, got torch\.int64\. Call"),
    ],
)
@pytest.mark.usefixtures("_untyped")
def test_rejects_invalid_arguments(points, settings, kind, sentence):
    with pytest.raises(kind, match=sentence):
        k_means(points, **{"n_clusters": 2} | settings)


def test_rows_that_differ_by_little_are_clustered():
    row = torch.nn.functional.normalize(noise(1, 64))
    points = row.repeat(50, 1)
    points[7, 3] = torch.nextafter(points[7, 3], torch.tensor(torch.inf))
    labels = k_means(points, 2)
    assert sorted(labels.bincount().tolist()) == [1, 49]
    assert labels.bincount()[labels[7]] == 1


def filled_by_hand(points, labels, k):
    """Move the rows farthest from their means to empty clusters, one after the other, if they are not alone."""
    labels = labels.copy()
    means = {label: points[labels == label].mean(axis=0) for label in set(labels.tolist())}
    distances = [float(np.linalg.norm(point - means[label])) for point, label in zip(points, labels, strict=True)]
    empty = [label for label in range(k) if label not in means]
    least = 1e-5 * np.linalg.norm(points, axis=1).max()
    for row in sorted(range(len(points)), key=lambda row: -distances[row]):
        if empty and distances[row] > least and (labels == labels[row]).sum() > 1:
            labels[row] = empty.pop()
    return labels


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_empty_clusters_get_the_rows_farthest_from_their_means_in_slices_of_any_size(data):
    n, k = data.draw(st.integers(2, 12)), data.draw(st.integers(2, 6))
    points = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(n, 2)).astype(np.float32)
    labels = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    before = labels.copy()
    arguments = torch.from_numpy(points), torch.from_numpy(labels), k
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "_ROWS", data.draw(st.integers(1, 12)))
        filled = clusters._fill_empty_clusters(*arguments).numpy()
    assert np.array_equal(labels, before)
    assert np.array_equal(filled, filled_by_hand(points, labels, k))
    assert set(labels) <= set(filled) <= set(range(k))


def test_equal_rows_do_not_fill_an_empty_cluster():
    labels = torch.tensor([0, 0, 0, 2, 2])
    points = torch.tensor([[1.0, 1], [3, 3]])[[0, 0, 0, 1, 1]]
    assert torch.equal(clusters._fill_empty_clusters(points, labels, 4), labels)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_cluster_means_are_the_means_of_the_assigned_rows_in_slices_of_any_size(data):
    n, k = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 5))
    labels = data.draw(st.lists(st.integers(-1, k - 1), min_size=n, max_size=n))
    points = torch.randn(n, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "_ROWS", data.draw(st.integers(1, 20)))
        means = cluster_means(points, labels, k)
    assert means.shape == (k, 3)
    for cluster in range(k):
        members = [point for point, label in zip(points, labels, strict=True) if label == cluster]
        torch.testing.assert_close(means[cluster], sum(members) / len(members) if members else torch.zeros(3))


def test_cluster_means_reject_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`labels` must be below `n_clusters=2`, got 2\. Raise `n_clusters`\."):
        cluster_means(noise(3, 2), [0, 1, 2], 2)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(3,\), one label per item, got shape \(2,\)"):
        cluster_means(noise(3, 2), [0, 1], 2)


def test_the_mean_of_many_rows_is_accurate():
    points, labels = torch.full((1_000_000, 1), 0.1), torch.zeros(1_000_000, dtype=torch.int64)
    in_float32 = float(torch.zeros(1, 1).index_add_(0, labels, points)) / 1_000_000  # 0.1010
    assert abs(float(cluster_means(points, labels, 1)) - 0.1) < abs(in_float32 - 0.1) / 10
