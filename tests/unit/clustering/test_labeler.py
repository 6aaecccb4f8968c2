import pickle

import jaxtyping
import numpy as np
import pytest
import torch
from points import assert_consistent, corners, noise, same_clusters
from sklearn.base import BaseEstimator
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional

from udmlss import ClusterPseudoLabeler, label_free_scores
from udmlss._chunks import ColumnRange
from udmlss.clustering import Communities, JaccardDBSCAN, label_margins
from udmlss.clustering import labeler as labeler_module
from udmlss.clustering.kmeans import cluster_means, cluster_rows, k_means
from udmlss.neighbors import average_with_neighbors, nearest, shared_neighbor_graph
from udmlss.neighbors import search as search_module
from udmlss.types import Labeler, Stateful, UsesSeed


@pytest.fixture
def starts(monkeypatch):
    """The initial centers of every k-means that a labeler runs."""
    recorded = []

    def spy(*args, start, **keywords):
        recorded.append(start)
        return cluster_rows(*args, start=start, **keywords)

    monkeypatch.setattr(labeler_module, "cluster_rows", spy)
    return recorded


@pytest.fixture
def _untyped(monkeypatch):
    """Without the types of the signatures, which reject some arguments before our own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_the_first_round_is_k_means_with_the_seed_of_the_labeler():
    embeddings = noise()
    pseudo = ClusterPseudoLabeler(9, seed=4).label(embeddings)
    assert_consistent(pseudo, embeddings)
    assert (pseudo.n_clusters, pseudo.n_unassigned, pseudo.agreement) == (9, 0, None)
    assert torch.equal(pseudo.labels, k_means(embeddings, 9, seed=4))


def test_without_a_seed_of_its_own_it_uses_the_default_seed():
    labels = [k_means(noise(), 9, seed=seed) for seed in (0, 3)]
    labeler = ClusterPseudoLabeler(9)
    assert torch.equal(labeler.label(noise()).labels, labels[0])
    for seed, expected in ((None, labels[1]), (0, labels[0]), (3, labels[1])):
        labeler = ClusterPseudoLabeler(9, seed=seed)
        labeler.set_default_seed(3)
        assert labeler.seed == seed
        assert torch.equal(labeler.label(noise()).labels, expected)


def test_similar_embeddings_retain_their_ids_and_agree():
    embeddings, labeler = noise(120, 6, seed=0), ClusterPseudoLabeler(6)
    first = labeler.label(embeddings)
    for seed in range(1, 4):
        embeddings = embeddings + 0.01 * noise(120, 6, seed)
        pseudo = labeler.label(embeddings)
        assert_consistent(pseudo, embeddings)
        assert (pseudo.labels == first.labels).float().mean() > 0.9
        assert pseudo.agreement > 0.8


def test_a_later_round_starts_from_the_means_of_the_previous_clusters(starts):
    labeler, later = ClusterPseudoLabeler(6), noise(seed=1)
    first = labeler.label(noise())
    labeler.label(later)
    assert starts[0] is None
    torch.testing.assert_close(starts[1], cluster_means(later, first.labels, 6))


def test_without_a_warm_start_each_round_starts_from_scratch(starts):
    labeler = ClusterPseudoLabeler(9, warm_start=False)
    first, second = labeler.label(noise()), labeler.label(noise())
    assert starts == [None, None]
    assert second.agreement < 1
    assert second.agreement == pytest.approx(adjusted_rand_score(first.labels, second.labels))


def test_equal_embeddings_give_equal_clusters_after_convergence():
    labeler = ClusterPseudoLabeler(5, max_iter=200)
    first, second = labeler.label(noise()), labeler.label(noise())
    assert torch.equal(first.labels, second.labels)
    assert second.agreement == 1


@pytest.mark.parametrize("d", [2, 20])
def test_embeddings_of_another_dimension_start_from_the_previous_clusters(starts, d):
    labeler, (embeddings, groups) = ClusterPseudoLabeler(5), corners()
    first = labeler.label(embeddings)
    later = torch.randn(5, d)[groups] + 0.01 * noise(len(groups), d)
    second = labeler.label(later)
    torch.testing.assert_close(starts[1], cluster_means(later, first.labels, 5))
    assert second.agreement == pytest.approx(adjusted_rand_score(first.labels, second.labels))
    assert_consistent(second, later)


@pytest.mark.parametrize("shape", [(50, 8), (400, 8), (50, 3)])
def test_another_number_of_images_has_no_agreement(shape):
    labeler = ClusterPseudoLabeler(6)
    labeler.label(noise())
    pseudo = labeler.label(noise(*shape))
    assert pseudo.agreement is None
    assert_consistent(pseudo, noise(*shape))
    assert labeler.label(noise(*shape)).agreement is not None


@pytest.mark.parametrize("n_clusters", [3, 9])
def test_the_number_of_clusters_may_change_between_rounds(n_clusters):
    labeler = ClusterPseudoLabeler(6)
    labeler.label(noise())
    labeler.n_clusters = n_clusters
    pseudo = labeler.label(noise())
    assert pseudo.n_clusters == n_clusters
    assert_consistent(pseudo, noise())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_floating_type_with_a_gradient_are_clustered(dtype):
    embeddings = corners()[0].to(dtype)
    pseudo = ClusterPseudoLabeler(5).label(embeddings.clone().requires_grad_())
    assert pseudo.centers.dtype == torch.float32
    assert not pseudo.centers.requires_grad
    assert_consistent(pseudo, embeddings)


def test_each_round_clusters_averages_and_centers_are_means_of_the_embeddings(starts):
    embeddings = functional.normalize(noise()), functional.normalize(noise(seed=1))
    averages = [average_with_neighbors(rows, 5) for rows in embeddings]
    labeler = ClusterPseudoLabeler(6, average_neighbors=5, seed=2)
    first, second = (labeler.label(rows) for rows in embeddings)
    assert torch.equal(first.labels, k_means(averages[0], 6, seed=2))
    torch.testing.assert_close(starts[1], cluster_means(averages[1], first.labels, 6))
    assert same_clusters(second.labels, k_means(averages[1], 6, start=starts[1], seed=3))
    for pseudo, rows in zip((first, second), embeddings, strict=True):
        assert_consistent(pseudo, rows)


def test_averages_find_small_groups_that_noise_hides():
    for seed in range(3):
        generator, groups = torch.Generator().manual_seed(seed), torch.arange(600) % 50
        embeddings = functional.normalize(torch.eye(50, 64)[groups] + 0.2 * torch.randn(600, 64, generator=generator))
        labelers = (ClusterPseudoLabeler(50, average_neighbors=count, seed=seed) for count in (None, 5))
        plain, averaged = (adjusted_rand_score(labeler.label(embeddings).labels, groups) for labeler in labelers)
        assert averaged > plain + 0.1


def test_embeddings_are_read_once_before_they_are_clustered(monkeypatch):
    calls, read = [], ColumnRange.of
    monkeypatch.setattr(ColumnRange, "of", lambda matrix: calls.append(len(matrix)) or read(matrix))
    for each in (6, DBSCAN(eps=2.0, min_samples=2), Communities(9)):
        labeler = ClusterPseudoLabeler(each)
        labeler.label(noise())
        assert calls == [300]
        calls.clear()
    label_free_scores(noise(), noise(20), range(20))
    assert calls == [300, 20]


LABELERS = {
    "communities": (ClusterPseudoLabeler(coarse=True, unassigned_fraction=0.1), 1),
    "communities of lists of 12": (ClusterPseudoLabeler(Communities(12), coarse=True), 1),
    "k-means": (ClusterPseudoLabeler(6), 0),
    "k-means of averages": (ClusterPseudoLabeler(6, average_neighbors=3), 1),
    "k-means with all options": (ClusterPseudoLabeler(6, average_neighbors=3, coarse=True, unassigned_fraction=0.1), 1),
    "clusterer with a reliability": (ClusterPseudoLabeler(DBSCAN(eps=2.0, min_samples=2), reliability=True), 1),
}


@pytest.mark.parametrize("name", LABELERS)
def test_one_search_of_all_embeddings_serves_everything_in_a_round(monkeypatch, name):
    labeler, expected = LABELERS[name]
    embeddings, searched, search = noise(), [], search_module.search_in_chunks
    monkeypatch.setattr(search_module, "search_in_chunks", lambda *args: searched.append(args[0]) or search(*args))
    for _ in range(2):
        searched.clear()
        labeler.label(embeddings)
        assert sum(rows.data_ptr() == embeddings.data_ptr() for rows in searched) == expected


def test_reliability_is_the_margin_of_each_label_and_the_least_reliable_are_unassigned():
    embeddings, _ = corners(each=20)
    embeddings += 0.9 * noise(len(embeddings), 6)
    plain = ClusterPseudoLabeler(5, reliability=True).label(embeddings)
    graph = shared_neighbor_graph(nearest(embeddings, 20 // 3 + 2)[1])
    torch.testing.assert_close(plain.reliability, label_margins(graph, plain.labels))
    found = ClusterPseudoLabeler(5, unassigned_fraction=0.25).label(embeddings)
    torch.testing.assert_close(found.reliability, plain.reliability)
    is_assigned = found.labels >= 0
    assert found.n_unassigned == 25
    assert found.reliability[~is_assigned].max() <= found.reliability[is_assigned].min()
    assert torch.equal(found.labels[is_assigned], plain.labels[is_assigned])
    assert_consistent(found, embeddings)
    assert ClusterPseudoLabeler(5).label(embeddings).reliability is None


def test_a_single_coarse_cluster_restricts_nothing():
    embeddings = torch.eye(2, 8).repeat_interleave(30, dim=0) + 0.3 * noise(60)
    assert ClusterPseudoLabeler(2, coarse=True).label(embeddings).coarse_labels is None


def test_coarse_clusters_of_single_images_restrict_nothing(monkeypatch):
    labels = torch.tensor([0] * 15 + [1] * 15 + [2, 3])
    monkeypatch.setattr(labeler_module, "coarse_communities", lambda *_, **__: (labels > 1).long())
    labeler = ClusterPseudoLabeler(lambda _: labels, coarse=True)
    assert labeler.label(noise(32)).coarse_labels is None


def test_a_cluster_that_remains_is_known_by_its_previous_id():
    rounds = iter([[0, 0, 1, 1, 2, 2], [1, 1, -1, -1, 0, 0], [0, 0, 1, 1, 2, 2]])
    labeler = ClusterPseudoLabeler(lambda _: torch.tensor(next(rounds)))
    assert labeler.label(noise(6)).previous_ids is None
    second, third = labeler.label(noise(6)), labeler.label(noise(6))
    assert second.labels.tolist() == [0, 0, -1, -1, 1, 1]
    assert second.previous_ids.tolist() == [0, 2]
    assert third.labels.tolist() == [0, 0, 2, 2, 1, 1]
    assert third.previous_ids.tolist() == [0, 1, -1]


def test_rejects_averages_that_are_equal():
    with pytest.raises(ValueError, match=r"Embeddings must differ, got 9 equal rows"):
        ClusterPseudoLabeler(2, average_neighbors=1).label(2.0 ** torch.arange(9).unsqueeze(1) * torch.ones(9, 2))


def test_a_round_that_failed_does_not_change_the_state():
    labeler, other = ClusterPseudoLabeler(6), ClusterPseudoLabeler(6)
    labeler.label(noise())
    other.label(noise())
    with pytest.raises(ValueError, match="must be finite"):
        labeler.label(torch.full((300, 8), torch.nan))
    assert torch.equal(labeler.label(noise(seed=1)).labels, other.label(noise(seed=1)).labels)


def test_a_length_of_lists_is_chosen_only_by_rounds_that_succeed_and_only_for_the_same_images():
    labeler, rows = ClusterPseudoLabeler(), corners(10, 36, 24)[0]
    before = labeler.state_dict()
    with pytest.raises(ValueError, match="same direction up to rounding"):
        labeler.label((torch.rand(300, 1) + 0.1) * torch.ones(1, 16))
    assert labeler.state_dict() == before
    for some in (rows, rows[::6]):
        fresh = ClusterPseudoLabeler()
        assert torch.equal(labeler.label(some).labels, fresh.label(some).labels)
        assert labeler.state_dict()["n_neighbors"] == fresh.state_dict()["n_neighbors"]


def test_a_single_community_is_an_error_that_names_the_setting_to_change():
    with pytest.raises(ValueError, match=r"at least 2 clusters.* Pass a smaller `images_per_cluster`"):
        ClusterPseudoLabeler(Communities(19)).label(noise(20))


def test_communities_without_a_seed_use_the_seed_of_the_labeler():
    rows = noise()
    expected = [torch.from_numpy(Communities(12, seed=seed).fit_predict(rows)) for seed in (0, 3)]
    assert not same_clusters(*expected)
    labeler = ClusterPseudoLabeler(Communities(12))
    assert same_clusters(labeler.label(rows).labels, expected[0])
    labeler.set_default_seed(3)
    assert same_clusters(labeler.label(rows).labels, expected[1])
    assert same_clusters(ClusterPseudoLabeler(Communities(12), seed=3).label(rows).labels, expected[1])
    assert same_clusters(ClusterPseudoLabeler(Communities(12, seed=0), seed=3).label(rows).labels, expected[0])


def test_the_length_that_a_user_sets_takes_precedence_over_that_of_earlier_rounds():
    labeler, rows = ClusterPseudoLabeler(Communities(4)), noise()
    labeler.label(rows)
    labeler.clusterer = Communities(30)
    assert same_clusters(labeler.label(rows).labels, torch.from_numpy(Communities(30).fit_predict(rows)))


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        (
            {"n_clusters": 3, "clusterer": DBSCAN()},
            ValueError,
            r"At most one of .* must be given, got `n_clusters` and `clusterer`\. ClusterPseudoLabeler\(100\)",
        ),
        ({"n_clusters": 3, "images_per_cluster": 4}, ValueError, r"got `n_clusters` and `images_per_cluster`\."),
        ({"images_per_cluster": 1}, ValueError, r"`images_per_cluster` must be at least 2, got 1\. Raise it\."),
        ({"n_clusters": 1}, ValueError, r"`n_clusters` must be at least 2, got 1\. Raise it\."),
        ({"n_clusters": 2.5}, TypeError, r"`n_clusters` must be an integer, got 2\.5 of type float\."),
        ({"n_clusters": True}, TypeError, r"`n_clusters` must be an integer, got True of type bool\."),
        ({"n_clusters": 3, "max_iter": 0}, ValueError, r"`max_iter` must be at least 1, got 0\. Raise it\."),
        ({"n_clusters": 3, "average_neighbors": 0}, ValueError, r"`average_neighbors` must be at least 1, got 0\."),
        ({"unassigned_fraction": 1}, ValueError, r"`unassigned_fraction` must lie in 0\.\.0\.9, got 1\.0\."),
        ({"device": "gpu"}, ValueError, r"`device` must be a device of this machine, got gpu\. Pass \"cpu\"\."),
        ({"n_clusters": 3, "seed": -1}, ValueError, r"`seed` must be at least 0, got -1\. Raise it\."),
        (
            {"clusterer": PCA()},
            TypeError,
            r"`clusterer` must be an object with .* or a function .*, got PCA\(\)\. Pass",
        ),
        ({"n_clusters": HDBSCAN}, TypeError, r"`clusterer` must be .*, got <class .*HDBSCAN'>\. Pass an instance"),
    ],
)
@pytest.mark.usefixtures("_untyped")
def test_rejects_invalid_settings(settings, kind, sentence):
    with pytest.raises(kind, match=sentence):
        ClusterPseudoLabeler(**settings)


def test_the_number_of_images_is_checked_before_they_are_embedded():
    with pytest.raises(ValueError, match=r"`k1=30` must not exceed the number of rows, got 29\."):
        ClusterPseudoLabeler(JaccardDBSCAN()).check_size(29)


def test_rejects_as_many_neighbors_as_images():
    with pytest.raises(ValueError, match=r"`average_neighbors=300` must be below the number of images, got 300\."):
        ClusterPseudoLabeler(3, average_neighbors=300).label(noise())


def test_a_restored_or_pickled_labeler_continues():
    labeler, restored = ClusterPseudoLabeler(6), ClusterPseudoLabeler(6)
    labeler.label(noise())
    restored.load_state_dict(labeler.state_dict())
    copies = restored, pickle.loads(pickle.dumps(labeler))  # noqa: S301 (our own)
    expected = labeler.label(noise(seed=1))
    for copy in copies:
        found = copy.label(noise(seed=1))
        assert torch.equal(found.labels, expected.labels)
        assert found.agreement == expected.agreement is not None


def test_it_is_a_labeler_and_not_an_estimator_of_scikit_learn():
    labeler = ClusterPseudoLabeler(np.int64(5), seed=np.int32(1))
    assert isinstance(labeler, Labeler)
    assert isinstance(labeler, Stateful)
    assert isinstance(labeler, UsesSeed)
    assert not isinstance(labeler, BaseEstimator)
    assert not hasattr(labeler, "fit_predict")
    assert repr(labeler) == "ClusterPseudoLabeler(5)"
    assert repr(ClusterPseudoLabeler(DBSCAN())) == "ClusterPseudoLabeler(DBSCAN())"
