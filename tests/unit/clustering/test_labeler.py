import pickle
import warnings
from copy import deepcopy

import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional

from udmlss import ClusterPseudoLabeler
from udmlss.clustering.kmeans import cluster_means, k_means


def blobs(n_clusters=5, each=12, d=6):
    """Groups of points around corners far apart, in shuffled order, with the group of each."""
    draws = torch.Generator().manual_seed(11)
    group = torch.arange(n_clusters).repeat_interleave(each)[torch.randperm(n_clusters * each, generator=draws)]
    return 5 * torch.eye(n_clusters, d)[group] + 0.1 * torch.randn(len(group), d, generator=draws), group


def noise(n=120, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Stub:
    """A clusterer that says what it was told to say, and notes what it was called with."""

    def __init__(self, *labels):
        self.labels, self.calls = labels, 0

    def fit_predict(self, X):  # noqa: N803 (scikit-learn's name)
        self.calls += 1
        return np.array(self.labels)


@pytest.fixture
def starts(monkeypatch):
    """The `start` of every k-means that a labeler runs."""
    noted = []

    def spy(*args, start, **keywords):
        noted.append(start)
        return k_means(*args, start=start, **keywords)

    monkeypatch.setattr(labeling, "k_means", spy)
    return noted


@pytest.fixture
def _types_unchecked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signatures refuse some, too


def assert_consistent(pseudo, embeddings):
    """Sizes count the labels, none of them is empty, and centroids are the means of their members."""
    assert len(pseudo.labels) == len(embeddings)
    assert pseudo.labels.min() >= -1
    assert pseudo.labels.max() == pseudo.n_clusters - 1
    assert pseudo.centers.shape == (pseudo.n_clusters, embeddings.shape[1])
    for cluster in range(pseudo.n_clusters):
        members = embeddings[pseudo.labels == cluster]
        assert pseudo.sizes[cluster] == len(members) > 0
        torch.testing.assert_close(pseudo.centers[cluster], members.float().mean(dim=0))


def test_the_first_round_has_clusters_and_no_agreement():
    embeddings = noise()
    pseudo = ClusterPseudoLabeler(9).label(embeddings)
    assert_consistent(pseudo, embeddings)
    assert pseudo.n_clusters == 9
    assert pseudo.n_unassigned == 0
    assert pseudo.agreement is None


def test_the_first_round_is_k_means_with_the_labelers_seed():
    assert torch.equal(ClusterPseudoLabeler(9, seed=4).label(noise()).labels, k_means(noise(), 9, seed=4))
    assert not torch.equal(ClusterPseudoLabeler(9, seed=5).label(noise()).labels, k_means(noise(), 9, seed=4))


def test_rounds_go_on_from_the_largest_seed():
    labeler = ClusterPseudoLabeler(9, warm_start=False, seed=2**32 - 1)
    labeler.label(noise())
    assert torch.equal(labeler.label(noise()).labels.unique(), torch.arange(9))


def test_two_rounds_with_no_image_in_both_have_no_agreement():
    class Rounds:
        answers = iter([np.array([0, 0, 1, 1, -1, -1, -1, -1]), np.array([-1, -1, -1, -1, 0, 0, 1, 1])])

        def fit_predict(self, X):  # noqa: N803 (scikit-learn's name)
            return next(self.answers)

    labeler = ClusterPseudoLabeler(clusterer=Rounds())
    assert [labeler.label(noise(8)).agreement for _ in range(2)] == [None, None]


def test_slightly_other_embeddings_keep_their_ids_and_agree():
    embeddings, labeler = noise(), ClusterPseudoLabeler(6)
    first = labeler.label(embeddings)
    for seed in range(1, 4):
        embeddings = embeddings + 0.01 * noise(seed=seed)
        pseudo = labeler.label(embeddings)
        assert_consistent(pseudo, embeddings)
        assert (pseudo.labels == first.labels).float().mean() > 0.9
        assert pseudo.agreement > 0.8


def test_the_next_round_starts_at_the_means_that_the_last_clusters_have_now(starts):
    labeler, later = ClusterPseudoLabeler(6), noise(seed=1)
    first = labeler.label(noise())
    labeler.label(later)
    assert starts[0] is None
    torch.testing.assert_close(starts[1], cluster_means(later, first.labels, 6))


def test_without_a_warm_start_every_round_starts_from_other_random_rows(starts):
    labeler = ClusterPseudoLabeler(9, warm_start=False)
    first, second = labeler.label(noise()), labeler.label(noise())
    assert starts == [None, None]
    assert second.agreement < 1
    assert second.agreement == pytest.approx(adjusted_rand_score(first.labels, second.labels))


def test_the_same_embeddings_again_give_the_same_clusters_once_they_have_settled():
    labeler = ClusterPseudoLabeler(5, max_iter=200)
    first, second = labeler.label(noise()), labeler.label(noise())
    assert torch.equal(first.labels, second.labels)
    assert second.agreement == 1


@pytest.mark.parametrize("d", [2, 20])
def test_embeddings_of_another_dimension_start_from_the_same_clusters(starts, d):
    labeler, group = ClusterPseudoLabeler(5), blobs()[1]
    first = labeler.label(blobs()[0])
    corners = torch.randn(5, d)
    later = corners[group] + 0.01 * noise(len(group), d)
    second = labeler.label(later)
    torch.testing.assert_close(starts[1], cluster_means(later, first.labels, 5))
    assert second.agreement == pytest.approx(adjusted_rand_score(first.labels, second.labels))
    assert_consistent(second, later)


@pytest.mark.parametrize("shape", [(50, 6), (200, 6), (50, 3), (200, 9)])
def test_another_number_of_images_starts_afresh_without_agreement(shape):
    labeler = ClusterPseudoLabeler(6)
    labeler.label(noise())
    pseudo = labeler.label(noise(*shape))
    assert pseudo.agreement is None
    assert_consistent(pseudo, noise(*shape))
    assert labeler.label(noise(*shape)).agreement is not None


@pytest.mark.parametrize("n_clusters", [3, 9])
def test_the_number_of_clusters_may_be_changed_between_rounds(n_clusters):
    labeler = ClusterPseudoLabeler(6)
    labeler.label(noise())
    pseudo = labeler.set_params(n_clusters=n_clusters).label(noise())
    assert pseudo.n_clusters == n_clusters
    assert_consistent(pseudo, noise())


def test_ids_are_matched_for_a_clusterer_of_ones_own_too():
    class Rounds:
        answers = iter([np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 2, 2, 0, 0]), np.array([0, 0, 0, 0, 1, 1])])

        def fit_predict(self, X):  # noqa: N803 (scikit-learn's name)
            return next(self.answers)

    labeler = ClusterPseudoLabeler(clusterer=Rounds())
    rounds = [labeler.label(noise(6)) for _ in range(3)]
    assert rounds[0].labels.tolist() == rounds[1].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert rounds[1].agreement == 1
    assert sorted(rounds[2].sizes.tolist()) == [2, 4]
    assert rounds[2].agreement < 1


def test_left_out_images_count_neither_in_sizes_nor_in_centroids_nor_in_agreement():
    embeddings, labeler = noise(8), ClusterPseudoLabeler(clusterer=Stub(9, 9, -1, 4, 4, -2, 4, -3))
    for expected in (None, 1.0):
        pseudo = labeler.label(embeddings)
        assert pseudo.labels.tolist() == [1, 1, -1, 0, 0, -1, 0, -1]
        assert pseudo.sizes.tolist() == [3, 2]
        assert pseudo.n_unassigned == 3
        assert pseudo.agreement == expected
        assert_consistent(pseudo, embeddings)


SETTINGS = {  # where the defaults do not suit the blobs
    "AffinityPropagation": {"damping": 0.9, "max_iter": 1000},
    "DBSCAN": {"eps": 1.0},
    "GaussianMixture": {"n_components": 5, "random_state": 0},
    "HDBSCAN": {"copy": True},
    "MeanShift": {"bandwidth": 2.0},
}
NO_CLUSTERER = {"FeatureAgglomeration": "groups columns, not rows"}
CLUSTERERS = {**dict(all_estimators(type_filter="cluster")), "GaussianMixture": GaussianMixture}


def built(kind):
    """Build a clusterer for five blobs, with the settings that it has a name for."""
    wanted = {"n_clusters": 5, "random_state": 0} | SETTINGS.get(kind.__name__, {})
    known = kind().get_params()
    return kind(**{name: value for name, value in wanted.items() if name in known})


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
def test_every_clusterer_of_scikit_learn_labels_rounds_and_stays_as_it_was(name):
    clusterer, (embeddings, group) = built(CLUSTERERS[name]), blobs()
    if name in NO_CLUSTERER:
        assert not hasattr(clusterer, "fit_predict")
        pytest.skip(NO_CLUSTERER[name])
    before = deepcopy(vars(clusterer))
    labeler = ClusterPseudoLabeler(clusterer=clusterer)
    first, second = labeler.label(embeddings), labeler.label(embeddings + 0.01 * noise(60))
    for pseudo in (first, second):
        assert_consistent(pseudo, embeddings if pseudo is first else embeddings + 0.01 * noise(60))
        assert adjusted_rand_score(group, pseudo.labels) > 0.6
    assert first.agreement is None
    assert second.agreement == pytest.approx(
        adjusted_rand_score(*(pseudo.labels[(first.labels >= 0) & (second.labels >= 0)] for pseudo in (first, second)))
    )
    assert vars(clusterer) == before


def test_a_clusterer_that_is_no_estimator_is_copied_for_every_round():
    clusterer = Stub(0, 0, 1, 1)
    labeler = ClusterPseudoLabeler(clusterer=clusterer)
    labeler.label(noise(4))
    labeler.label(noise(4))
    assert clusterer.calls == 0


def test_a_clusterer_that_writes_over_its_input_changes_no_embedding():
    class Rude:
        def fit_predict(self, X):  # noqa: N803 (scikit-learn's name)
            np.multiply(X, 0, out=X)
            return np.arange(len(X)) % 2

    embeddings = noise()
    pseudo = ClusterPseudoLabeler(clusterer=Rude()).label(embeddings)
    assert torch.equal(embeddings, noise())
    assert_consistent(pseudo, noise())


def test_clusters_of_hdbscan_leave_noise_out():
    embeddings = torch.cat([blobs()[0], torch.full((1, 6), 50.0)])
    pseudo = ClusterPseudoLabeler(clusterer=HDBSCAN(min_cluster_size=5, copy=True)).label(embeddings)
    assert pseudo.n_clusters == 5
    assert pseudo.labels[-1] == -1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_floating_type_with_a_gradient_are_clustered_in_float32(dtype):
    embeddings = blobs()[0].to(dtype)
    pseudo = ClusterPseudoLabeler(5).label(embeddings.clone().requires_grad_())
    assert pseudo.centers.dtype == torch.float32
    assert not pseudo.centers.requires_grad
    assert_consistent(pseudo, embeddings)


def whitened_by_hand(embeddings, dimensions):
    """Turn to the directions of most spread, make each as wide as the other, and every row as long."""
    centred = (embeddings - embeddings.mean(dim=0)).double()
    spread, directions = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
    kept = directions[:, -dimensions:] / spread[-dimensions:].sqrt()
    return functional.normalize(centred @ kept).float()


@pytest.mark.parametrize("dimensions", [2, 6])
def test_whitening_is_what_it_is_by_hand_but_for_the_signs_of_the_directions(dimensions):
    embeddings = noise() * torch.tensor([9.0, 5, 3, 2, 1, 0.5]) + 4
    ours, expected = labeling._whiten(embeddings, dimensions, 0), whitened_by_hand(embeddings, dimensions)
    assert ours.shape == (120, dimensions)
    torch.testing.assert_close(ours @ ours.T, expected @ expected.T, atol=1e-4, rtol=0)


def test_whitening_clusters_the_first_round_only_and_centroids_are_embeddings_all_the_same(starts):
    embeddings = noise() * torch.tensor([9.0, 5, 3, 2, 1, 0.5])
    labeler = ClusterPseudoLabeler(6, whiten_first=4, seed=2)
    first, second = labeler.label(embeddings), labeler.label(embeddings)
    theirs = functional.normalize(torch.tensor(PCA(4, whiten=True).fit_transform(embeddings.numpy())))
    assert adjusted_rand_score(first.labels, k_means(theirs, 6, seed=2)) > 0.99
    assert adjusted_rand_score(first.labels, k_means(embeddings, 6, seed=2)) < 0.9
    for pseudo in (first, second):
        assert_consistent(pseudo, embeddings)
    torch.testing.assert_close(starts[1], first.centers)
    assert torch.equal(
        labeling.match_ids(k_means(embeddings, 6, start=first.centers, seed=3), first.labels), second.labels
    )


def test_directions_without_any_spread_are_whitened_to_finite_numbers():
    flat = noise(40, 2) @ torch.randn(2, 6)
    assert torch.isfinite(labeling._whiten(flat, 6, 0)).all()
    assert torch.isfinite(labeling._whiten(flat.repeat_interleave(2, dim=0), 6, 0)).all()


@pytest.mark.parametrize("dimensions", [0, 7])
def test_more_dimensions_than_there_are_to_whiten_to_are_refused(dimensions):
    sentence = (
        rf"`whiten_first={dimensions}` must lie between 1 and the number of images and dimensions; "
        r"found embeddings of shape \(120, 6\)\. Use at most 6\."
    )
    with pytest.raises(ValueError, match=sentence):
        ClusterPseudoLabeler(3, whiten_first=dimensions).label(noise())


def averaged_by_hand(embeddings, n_neighbors):
    directions = functional.normalize(embeddings)
    similarity = (directions @ directions.T).fill_diagonal_(2)  # itself first
    weights = torch.linspace(1, 0, n_neighbors + 2)
    order = similarity.argsort(dim=1, descending=True)[:, : n_neighbors + 1]
    return functional.normalize(torch.einsum("m,nmd->nd", weights[:-1], directions[order]))


@pytest.mark.parametrize("n_neighbors", [1, 5, 119])
def test_averages_with_neighbors_are_what_they_are_by_hand(n_neighbors, monkeypatch):
    embeddings = noise() * 3
    expected = averaged_by_hand(embeddings, n_neighbors)
    torch.testing.assert_close(labeling.average_with_neighbors(embeddings, n_neighbors), expected)
    monkeypatch.setattr(chunking, "_ROWS", 7)
    torch.testing.assert_close(labeling.average_with_neighbors(embeddings, n_neighbors), expected)


def test_every_round_clusters_averages_and_centroids_are_means_of_the_embeddings_themselves(starts):
    first_embeddings, second_embeddings = functional.normalize(noise()), functional.normalize(noise(seed=1))
    labeler = ClusterPseudoLabeler(6, average_neighbors=5, seed=2)
    first, second = labeler.label(first_embeddings), labeler.label(second_embeddings)
    averages = [averaged_by_hand(rows, 5) for rows in (first_embeddings, second_embeddings)]
    assert adjusted_rand_score(first.labels, k_means(averages[0], 6, seed=2)) > 0.99
    assert adjusted_rand_score(first.labels, k_means(first_embeddings, 6, seed=2)) < 0.9
    torch.testing.assert_close(starts[1], cluster_means(averages[1], first.labels, 6))
    assert adjusted_rand_score(second.labels, k_means(averages[1], 6, start=starts[1], seed=3)) > 0.99
    for pseudo, rows in ((first, first_embeddings), (second, second_embeddings)):
        assert_consistent(pseudo, rows)


def test_a_clusterer_sees_averages_too():
    stub = Stub([0, 1] * 60)
    seen = []
    stub.fit_predict = lambda rows: seen.append(torch.from_numpy(rows)) or np.array([0, 1] * 60)
    embeddings = noise()
    labeler = ClusterPseudoLabeler(clusterer=stub, average_neighbors=3)
    labeler._cluster(labeler._prepared(embeddings), None)
    torch.testing.assert_close(seen[0], averaged_by_hand(embeddings, 3))


@pytest.mark.parametrize("seed", range(3))
def test_averages_find_small_groups_that_noise_hides(seed):
    draws = torch.Generator().manual_seed(seed)
    group = torch.arange(600) % 50
    embeddings = functional.normalize(torch.eye(50, 64)[group] + 0.2 * torch.randn(600, 64, generator=draws))
    labelers = (ClusterPseudoLabeler(50, average_neighbors=count, seed=seed) for count in (None, 5))
    plain, averaged = (adjusted_rand_score(each.label(embeddings).labels, group) for each in labelers)
    assert averaged > plain + 0.1


def test_images_that_are_all_each_others_neighbors_stay_apart():
    averaged = labeling.average_with_neighbors(functional.normalize(noise(6)), 5)
    assert torch.cdist(averaged, averaged).fill_diagonal_(1).min() > 1e-3


def test_as_many_neighbors_as_images_are_refused():
    with pytest.raises(ValueError, match=r"`average_neighbors=120` needs more images than that, got 120\. Lower it"):
        ClusterPseudoLabeler(3, average_neighbors=120).label(noise())
    with pytest.raises(ValueError, match="`average_neighbors` must be at least 1, got 0"):
        ClusterPseudoLabeler(3, average_neighbors=0)


NAN = noise()
NAN[[5, 9], [0, 1]] = torch.tensor([torch.nan, torch.inf])


@pytest.mark.parametrize(
    ("labeler", "embeddings", "kind", "sentence"),
    [
        (
            ClusterPseudoLabeler(3),
            NAN,
            ValueError,
            r"`embeddings` must be finite, got 2 of 120 .* first is row 5\. Low",
        ),
        (
            ClusterPseudoLabeler(3),
            torch.arange(9).view(3, 3),
            TypeError,
            r"must hold floating-point .* torch\.int64\. C",
        ),
        (
            ClusterPseudoLabeler(3),
            noise()[0],
            ValueError,
            r"must be a non-empty matrix \(n d\), got shape \(6,\)\. Fl",
        ),
        (
            ClusterPseudoLabeler(3),
            noise()[:0],
            ValueError,
            r"must be a non-empty matrix \(n d\), got shape \(0, 6\)\.",
        ),
        (
            ClusterPseudoLabeler(3),
            noise()[:2],
            ValueError,
            r"`n_clusters=3` needs at least as many images, got 2\. L",
        ),
        (
            ClusterPseudoLabeler(3),
            noise()[:1],
            ValueError,
            r"`n_clusters=3` needs at least as many images, got 1\. L",
        ),
        (
            ClusterPseudoLabeler(3),
            torch.ones(20, 4),
            ValueError,
            r"embeddings that differ, got 20 equal rows, one cluster of sizes \[20\]: the model has collapsed\. Low",
        ),
        (ClusterPseudoLabeler(clusterer=Stub()), torch.ones(20, 4), ValueError, r"found 20 equal rows, one cluster"),
        (
            ClusterPseudoLabeler(clusterer=KMeans(1)),
            noise(),
            ValueError,
            r"A round needs at least 2 clusters, got sizes \[120\] with 0 of 120 images left out\. Let the clusterer",
        ),
        (
            ClusterPseudoLabeler(clusterer=DBSCAN(eps=1e-9)),
            noise(),
            ValueError,
            r"at least 2 clusters, got sizes \[\] with 120 of 120 images left out\. Let the clusterer make more",
        ),
    ],
)
@pytest.mark.usefixtures("_types_unchecked")
def test_embeddings_without_clusters_are_refused(labeler, embeddings, kind, sentence):
    with pytest.raises(kind, match=sentence):
        labeler.label(embeddings)


def test_a_round_that_was_refused_leaves_the_rounds_before_as_they_were():
    labeler, other = ClusterPseudoLabeler(6), ClusterPseudoLabeler(6)
    labeler.label(noise())
    other.label(noise())
    with pytest.raises(ValueError, match="must be finite"):
        labeler.label(NAN)
    assert torch.equal(labeler.label(noise(seed=1)).labels, other.label(noise(seed=1)).labels)


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({}, ValueError, r"Give one of `n_clusters` and `clusterer`, got neither\. ClusterPseudoLabeler\(100\) runs"),
        (
            {"n_clusters": 3, "clusterer": DBSCAN()},
            ValueError,
            r"Give one of .*, got both\. ClusterPseudoLabeler\(10",
        ),
        ({"n_clusters": 1}, ValueError, r"`n_clusters` must be at least 2, got 1\. Raise it\."),
        ({"n_clusters": 3, "max_iter": 0}, ValueError, r"`max_iter` must be at least 1, got 0\. Raise it\."),
        (
            {"n_clusters": 3, "seed": -1},
            ValueError,
            r"`seed` must lie in 0\.\.4294967295, got -1\. Choose a number in",
        ),
        ({"n_clusters": 3, "seed": 2**32}, ValueError, r"`seed` must lie in 0\.\.4294967295, got 4294967296\. Ch"),
        (
            {"clusterer": PCA()},
            TypeError,
            r"`clusterer` must be an object with .* `fit_predict`, got PCA\(\)\. Pass an",
        ),
        (
            {"clusterer": HDBSCAN},
            TypeError,
            r"must be an object with .* `fit_predict`, got .*HDBSCAN.*\. Pass an ins",
        ),
    ],
)
@pytest.mark.usefixtures("_types_unchecked")
def test_settings_that_make_no_sense_are_refused(settings, kind, sentence):
    with pytest.raises(kind, match=sentence):
        ClusterPseudoLabeler(**settings)


@pytest.mark.parametrize(
    ("settings", "found"), [({"n_clusters": None}, "neither"), ({"clusterer": AgglomerativeClustering(3)}, "both")]
)
def test_settings_made_wrong_afterwards_are_refused_when_a_round_begins(settings, found):
    labeler = ClusterPseudoLabeler(3).set_params(**settings)
    with pytest.raises(ValueError, match=rf"Give one of `n_clusters` and `clusterer`, got {found}\."):
        labeler.label(noise())


def test_a_clone_has_the_settings_and_none_of_the_rounds():
    labeler = ClusterPseudoLabeler(clusterer=KMeans(4, random_state=1), whiten_first=3, warm_start=False, seed=8)
    labeler.label(noise())
    copy = clone(labeler)
    assert str(copy.get_params()) == str(labeler.get_params())
    assert copy.clusterer is not labeler.clusterer
    assert copy.label(noise()).agreement is None


def test_a_pickled_labeler_goes_on_where_it_was():
    labeler = ClusterPseudoLabeler(6)
    labeler.label(noise())
    copy = pickle.loads(pickle.dumps(labeler))  # noqa: S301 (our own)
    ours, theirs = labeler.label(noise(seed=1)), copy.label(noise(seed=1))
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.agreement == theirs.agreement is not None


def test_it_speaks_scikit_learn():
    points = noise().numpy()
    labeler = ClusterPseudoLabeler(5)
    assert labeler.fit(points) is labeler
    assert np.array_equal(labeler.labels_, ClusterPseudoLabeler(5).label(noise()).labels)
    assert np.array_equal(labeler.labels_, ClusterPseudoLabeler(5).fit_predict(points.astype(np.float64)))
    assert labeler.set_params(n_clusters=7).fit_predict(points).max() == 6
    assert labeler.get_params()["n_clusters"] == 7


def test_to_fit_is_to_forget_earlier_rounds():
    labeler = ClusterPseudoLabeler(9)
    labeler.label(noise(seed=1))
    assert np.array_equal(labeler.fit_predict(noise().numpy()), ClusterPseudoLabeler(9).fit_predict(noise().numpy()))


def test_it_ends_a_pipeline_of_scikit_learn():
    embeddings, group = blobs()
    pipeline = make_pipeline(StandardScaler(), PCA(4), ClusterPseudoLabeler(clusterer=AgglomerativeClustering(5)))
    assert adjusted_rand_score(group, pipeline.fit_predict(embeddings.numpy())) == 1


REFUSED_EARLY = "arguments are refused when the labeler is made, and two clusters are the fewest"
OWN_WORDS = "refused, in our own words"
EXPECTED_TO_FAIL = {
    "check_parameters_default_constructible": REFUSED_EARLY,
    "check_do_not_raise_errors_in_init_or_set_params": REFUSED_EARLY,
    "check_dont_overwrite_parameters": REFUSED_EARLY,
    "check_methods_subset_invariance": REFUSED_EARLY,
    "check_fit2d_1feature": REFUSED_EARLY,
    "check_fit2d_predict1d": REFUSED_EARLY,
    "check_fit2d_1sample": OWN_WORDS,
    "check_complex_data": OWN_WORDS,
    "check_estimators_empty_data_messages": OWN_WORDS,
    "check_estimator_sparse_tag": OWN_WORDS,
    "check_estimator_sparse_array": OWN_WORDS,
    "check_estimator_sparse_matrix": OWN_WORDS,
    "check_estimators_dtypes": "whole numbers are refused, since embeddings are none",
    "check_dtype_object": "objects are refused, since embeddings are none",
    "check_n_features_in": "images may have another dimension in another round",
    "check_n_features_in_after_fitting": "images may have another dimension in another round",
}


@parametrize_with_checks([ClusterPseudoLabeler(3)], expected_failed_checks=lambda _: EXPECTED_TO_FAIL)
@pytest.mark.usefixtures("_types_unchecked")
def test_it_passes_the_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
