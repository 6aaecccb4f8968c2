"""k-means on ordinary data sets, and on ones where rounding, overflow or outliers decide."""

from statistics import median

import pytest
import torch
from kmeans_data import DATA_SETS, data_set
from points import objective
from sklearn.cluster import KMeans

from udmlss import ClusterPseudoLabeler
from udmlss.clustering import cluster_means, k_means

LIMIT = 1.2  # times the objective of the best of ten runs of scikit-learn


def scaled(points):
    """Return the points in float64, around the origin and at most 1."""
    centered = points.double() - points.double().mean(dim=0)
    return centered / centered.abs().max()


def relative_objective(name, seeds):
    """Return the median objective of some seeds, relative to the best of ten runs of scikit-learn."""
    points, k = data_set(name)
    rows = scaled(points)
    best = min(KMeans(k, n_init=1, random_state=seed).fit(rows.numpy()).inertia_ for seed in range(10))
    found = [objective(rows, k_means(points, k, seed=seed)) for seed in seeds]
    return median(found) / best


@pytest.mark.parametrize("name", ["outlier at 1e4", "two groups, 1e5 apart", "offset 1e6", "scale 1e-30"])
def test_the_objective_is_near_the_best_of_ten_of_scikit_learn(name):
    assert relative_objective(name, range(2)) < LIMIT


@pytest.mark.slow(attack="kmeans")
def test_the_objective_of_all_data_sets_is_near_the_best_of_ten_of_scikit_learn(attack):
    for name in DATA_SETS:
        with attack.attempt(name):
            assert relative_objective(name, range(7)) < LIMIT


@pytest.mark.parametrize("name", ["very narrow cone", "scale 1e36", "outlier at 1e10"])
def test_a_labeler_clusters_the_data_sets_in_every_round(name):
    points, k = data_set(name)
    labeler = ClusterPseudoLabeler(k)
    first, second = labeler.label(points), labeler.label(points)
    assert first.n_clusters == second.n_clusters == k
    assert objective(scaled(points), second.labels) <= objective(scaled(points), first.labels) * 1.0001
    assert second.agreement > 0.9


def test_means_far_from_the_origin_are_those_in_float64():
    points, _ = data_set("offset 1e6")
    for matrix in (points, 1e30 * points):
        means = cluster_means(matrix, torch.zeros(len(points), dtype=torch.int64), 1)
        torch.testing.assert_close(means, matrix.double().mean(dim=0, keepdim=True).float(), rtol=1e-7, atol=0)


def test_a_scale_by_a_power_of_two_changes_nothing():
    points = torch.nn.functional.normalize(torch.randn(300, 8))
    expected = k_means(points, 12)
    for exponent in (-30, -12, 12, 30):
        assert torch.equal(k_means(points * 2.0**exponent, 12), expected)


def test_each_different_row_can_have_a_cluster_of_its_own():
    row = torch.rand(4)
    steps = torch.arange(6).unsqueeze(1) * torch.eye(4)[1] * 2**-22
    for points in (row + steps, torch.cat([row + steps, torch.tensor([[1e8, 0, 0, 0]])]), 1e-38 * (row + steps)):
        labels = k_means(points.repeat(3, 1), len(points))
        assert labels.unique().tolist() == list(range(len(points)))
        assert torch.equal(labels, labels[: len(points)].repeat(3))


def test_initial_centers_may_be_far_from_all_rows():
    points, k = data_set("blobs")
    for start in (1e30 * torch.randn(k, 4), points[:1].repeat(k, 1), torch.full((k, 4), 3e38)):
        assert (k_means(points, k, start=start).bincount(minlength=k) > 0).all()
