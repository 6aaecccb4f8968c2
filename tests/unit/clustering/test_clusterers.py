from copy import deepcopy
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from points import assert_consistent, corners, noise, same_clusters
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.utils import all_estimators

from udmlss import ClusterPseudoLabeler
from udmlss.clustering.any_labeler import as_labeler
from udmlss.neighbors import average_with_neighbors
from udmlss.types import Labeler, PseudoLabels, Stateful


class FixedLabels:
    """A clusterer that always returns the same labels and counts its calls."""

    def __init__(self, labels):
        self.labels, self.calls = labels, 0

    def fit_predict(self, X):  # noqa: N803 (scikit-learn's name)
        self.calls += 1
        return np.array(self.labels)


def in_rounds(*labels):
    """Return a function that returns these labels in turn."""
    rounds = iter(labels)
    return lambda _: next(rounds)


@pytest.fixture
def _untyped(monkeypatch):
    """Without the types of the signatures, which reject some arguments before our own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_ids_of_a_clusterer_are_matched():
    rounds = [0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0], [0, 0, 0, 0, 1, 1]
    labeler = ClusterPseudoLabeler(in_rounds(*rounds))
    first, second, third = (labeler.label(noise(6)) for _ in range(3))
    assert first.labels.tolist() == second.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert second.agreement == 1
    assert sorted(third.sizes.tolist()) == [2, 4]
    assert third.agreement < 1


def test_rounds_without_an_image_assigned_in_both_have_no_agreement():
    labeler = ClusterPseudoLabeler(in_rounds([0, 0, 1, 1, -1, -1, -1, -1], [-1, -1, -1, -1, 0, 0, 1, 1]))
    assert [labeler.label(noise(8)).agreement for _ in range(2)] == [None, None]


def test_unassigned_images_do_not_count():
    embeddings, labeler = noise(8), ClusterPseudoLabeler(FixedLabels([9, 9, -1, 4, 4, -2, 4, -3]))
    for expected in (None, 1.0):
        pseudo = labeler.label(embeddings)
        assert pseudo.labels.tolist() == [1, 1, -1, 0, 0, -1, 0, -1]
        assert pseudo.sizes.tolist() == [3, 2]
        assert pseudo.n_unassigned == 3
        assert pseudo.agreement == expected
        assert_consistent(pseudo, embeddings)


SETTINGS = {  # the defaults do not suit the blobs
    "AffinityPropagation": {"damping": 0.9, "max_iter": 1000},
    "DBSCAN": {"eps": 1.0},
    "GaussianMixture": {"n_components": 5, "random_state": 0},
    "HDBSCAN": {"copy": True},
    "MeanShift": {"bandwidth": 2.0},
}
CLUSTERERS = {**dict(all_estimators(type_filter="cluster")), "GaussianMixture": GaussianMixture}
CLUSTERERS.pop("FeatureAgglomeration")  # clusters columns


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
def test_every_clusterer_of_scikit_learn_labels_rounds_and_is_not_changed(name):
    embeddings, groups = corners()
    kind = CLUSTERERS[name]
    known = kind().get_params()
    wanted = {"n_clusters": 5, "random_state": 0} | SETTINGS.get(name, {})
    clusterer = kind(**{setting: value for setting, value in wanted.items() if setting in known})
    before = deepcopy(vars(clusterer))
    labeler = ClusterPseudoLabeler(clusterer)
    first, second = labeler.label(embeddings), labeler.label(embeddings + 0.01 * noise(60, 6))
    assert_consistent(first, embeddings)
    assert_consistent(second, embeddings + 0.01 * noise(60, 6))
    for pseudo in (first, second):
        assert adjusted_rand_score(groups, pseudo.labels) > 0.6
    both = (first.labels >= 0) & (second.labels >= 0)
    assert second.agreement == pytest.approx(adjusted_rand_score(first.labels[both], second.labels[both]))
    assert vars(clusterer) == before


def test_a_clusterer_is_copied_for_every_round_and_gets_a_copy_of_the_embeddings():
    class Overwriting(FixedLabels):
        def fit_predict(self, X):  # noqa: N803 (scikit-learn's name)
            np.multiply(X, 0, out=X)
            return super().fit_predict(X)

    embeddings, clusterer = noise(4), Overwriting([0, 0, 1, 1])
    labeler = ClusterPseudoLabeler(clusterer=clusterer)
    for _ in range(2):
        assert_consistent(labeler.label(embeddings), noise(4))
    assert clusterer.calls == 0
    assert torch.equal(embeddings, noise(4))


def test_a_pipeline_is_a_clusterer():
    embeddings, groups = corners()
    pipeline = make_pipeline(PCA(4), HDBSCAN(min_cluster_size=5, copy=True))
    pseudo = ClusterPseudoLabeler(pipeline).label(torch.cat([embeddings, torch.full((1, 6), 500.0)]))
    assert pseudo.n_clusters == 5
    assert same_clusters(pseudo.labels[:-1], groups)
    assert pseudo.labels[-1] == -1


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, PseudoLabels.from_labels])
def test_a_function_may_return_labels_of_any_kind(convert):
    embeddings = noise(6)
    for labeler in (ClusterPseudoLabeler, as_labeler):
        pseudo = labeler(lambda _: convert([2, 2, 7, 7, -1, 7])).label(embeddings)
        assert pseudo.labels.tolist() == [0, 0, 1, 1, -1, 1]
        assert_consistent(pseudo, embeddings)


def test_clusterers_and_functions_receive_averages(monkeypatch):
    received = []

    def function(rows):
        received.append(torch.as_tensor(rows))
        return [0, 1] * 60

    monkeypatch.setattr(FixedLabels, "fit_predict", lambda _, rows: function(rows))
    for clusterer in (FixedLabels([]), function):
        ClusterPseudoLabeler(clusterer, average_neighbors=3).label(noise(120))
        torch.testing.assert_close(received.pop(), average_with_neighbors(noise(120), 3))


NAN = noise()
NAN[[5, 9], [0, 1]] = torch.tensor([torch.nan, torch.inf])
COLUMN = np.zeros((300, 1), dtype=int)


@pytest.mark.parametrize(
    ("labeler", "embeddings", "kind", "sentence"),
    [
        (3, NAN, ValueError, r"`embeddings` must be finite, got 2 of 300 .* first is row 5\."),
        (3, torch.arange(9).view(3, 3), TypeError, r"must be a floating-point tensor, got torch\.int64\."),
        (3, noise()[0], ValueError, r"must be a non-empty 2-D tensor, got shape \(8,\)\."),
        (3, noise()[:2], ValueError, r"`n_clusters=3` needs at least 3 images, got 2\."),
        (3, torch.ones(20, 4), ValueError, r"Embeddings must differ, got 20 equal rows: the model has collapsed\."),
        (lambda _: [], torch.ones(20, 4), ValueError, r"Embeddings must differ, got 20 equal rows"),
        (KMeans(1), noise(), ValueError, r"A round needs at least 2 clusters, got sizes \[300\] with 0 of 300 images"),
        (DBSCAN(eps=1e-9), noise(), ValueError, r"`labels` must assign images to clusters, got 300 labels below 0\."),
        (lambda _: [0] * 299, noise(), ValueError, r"`labels of the clusterer` must have shape \(300,\), .* \(299,\)"),
        (lambda _: [0] * 301, noise(), ValueError, r"`labels of the clusterer` must have shape \(300,\), .* \(301,\)"),
        (lambda _: COLUMN, noise(), ValueError, r"`labels of the clusterer` must have shape \(300,\), .* \(300, 1\)"),
        (lambda _: COLUMN / 2, noise(), TypeError, r"`labels of the clusterer` must be integers, got float64\."),
        (lambda _: None, noise(), TypeError, r"`labels of the clusterer` must be integers, got object\."),
    ],
)
@pytest.mark.usefixtures("_untyped")
def test_rejects_embeddings_and_labels_that_are_not_clusters(labeler, embeddings, kind, sentence):
    with pytest.raises(kind, match=sentence):
        ClusterPseudoLabeler(labeler).label(embeddings)


def test_as_labeler_accepts_clusterers_and_functions():
    labeler = ClusterPseudoLabeler(3)
    assert as_labeler(labeler) is labeler
    for clusterer in (AgglomerativeClustering(5), lambda _: corners()[1]):
        found = as_labeler(clusterer)
        assert isinstance(found, ClusterPseudoLabeler)
        assert same_clusters(found.label(corners()[0]).labels, corners()[1])


class BareLabels:
    """A labeler with a state whose `label` returns what it was built with."""

    def __init__(self, labels):
        self.labels, self.seed = labels, None

    def label(self, embeddings):
        return self.labels

    def set_default_seed(self, seed):
        self.seed = seed

    def state_dict(self):
        return {"labels": self.labels}

    def load_state_dict(self, state):
        self.labels = state["labels"]


def test_as_labeler_accepts_a_labeler_of_bare_labels():
    original = BareLabels([4, 4, -1, 2])
    labeler = as_labeler(original)
    assert isinstance(labeler, Labeler)
    pseudo = labeler.label(noise(4))
    assert pseudo.labels.tolist() == [1, 1, -1, 0]
    assert_consistent(pseudo, noise(4))
    labeler.set_default_seed(3)
    assert original.seed == 3
    expected = PseudoLabels.from_labels([0, 1, 0, 1])
    labeler.load_state_dict({"labels": expected})
    assert labeler.label(noise(4)) is labeler.state_dict()["labels"] is expected
    assert not isinstance(as_labeler(SimpleNamespace(label=lambda _: [0, 1])), Stateful)


def test_as_labeler_rejects_other_objects_and_labels_that_do_not_fit():
    for found in (3, None, ClusterPseudoLabeler, PCA()):
        with pytest.raises(TypeError, match=r"`labeler` must have `label\(embeddings\)` .*, got .* Pass an instance"):
            as_labeler(found)
    for labels in ([0, 1], PseudoLabels.from_labels([0, 1])):
        with pytest.raises(ValueError, match=r"`labels of the labeler` must have shape \(3,\), .* \(2,\)"):
            as_labeler(BareLabels(labels)).label(noise(3))
