import dataclasses
from fractions import Fraction
from math import ceil

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from udmlss import Epochs, FitResult, LossTerms, PseudoLabels, RoundReport, Scores
from udmlss.results import LabelFreeScores, StepReport
from udmlss.types import Images

FIELDS = {"labels": torch.tensor([0, -1, 1, 1, -1]), "centers": torch.zeros(2, 3), "sizes": torch.tensor([1, 2])}


@given(st.integers(1, 20), st.integers(1, 10_000), st.integers(1, 500))
def test_epochs_are_the_smallest_number_of_steps_with_that_many_images(count, n_images, batch_size):
    steps = Epochs(count).in_steps(n_images, batch_size)
    assert steps * batch_size >= count * n_images > (steps - 1) * batch_size


@given(st.sampled_from([0.25, 0.5, 1.75]), st.integers(1, 1000), st.integers(1, 50))
def test_epochs_may_be_fractions(count, n_images, batch_size):
    assert Epochs(count).in_steps(n_images, batch_size) == ceil(Fraction(count) * n_images / batch_size)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 50))
def test_epochs_have_at_least_the_least_number_of_steps(min_steps, n_images, batch_size):
    plain = Epochs(2).in_steps(n_images, batch_size)
    assert Epochs(2, min_steps=min_steps).in_steps(n_images, batch_size) == max(plain, min_steps)


def test_epochs_must_be_above_zero():
    with pytest.raises(ValueError, match=r"`count` must be above 0, got 0\.0\."):
        Epochs(0)


def test_pseudo_labels_count_clusters_and_unassigned_images():
    pseudo = PseudoLabels(**FIELDS)
    assert (pseudo.n_clusters, pseudo.n_unassigned, pseudo.agreement) == (2, 2, None)
    assert repr(pseudo) == "PseudoLabels(n=5, n_clusters=2, sizes=1..2, n_unassigned=2, agreement=None)"
    assert PseudoLabels(**FIELDS | {"centers": None}).n_clusters == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": torch.tensor([0, -2, 1, 1, -1])}, r"`labels` must be -1 or above, got -2\. Use"),
        ({"labels": torch.tensor([0, -1, 2, 2, -1])}, r"`sizes` must be the number of images of each cluster"),
        ({"labels": torch.tensor([0, 2**60, 1, 1, -1])}, r"`sizes` must be the number of images of each cluster"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, r"`sizes` must be the number of images of each cluster"),
        ({"sizes": torch.tensor([2, 2])}, r"numbered without gaps, got sizes \[2, 2\] for \[1, 2\] images"),
        ({"sizes": torch.tensor([1, 2, 0])}, r"`sizes` must be the number of images of each cluster"),
        ({"centers": torch.zeros(3, 3)}, r"`centers` must be a finite tensor of 2 rows, .*, got shape \(3, 3\)\."),
        ({"centers": torch.full((2, 3), torch.nan)}, r"`centers` must be a finite tensor of 2 rows"),
        ({"reliability": torch.zeros(4)}, r"`reliability` must have shape \(5,\), .*, got shape \(4,\)\. Pass"),
        ({"coarse_labels": torch.tensor([0, 1])}, r"`coarse_labels` must have shape \(5,\), one label per item"),
        ({"agreement": 1.5}, r"`agreement` must lie in -1\.\.1, got 1\.5\."),
    ],
)
def test_pseudo_labels_reject_fields_that_contradict_each_other(monkeypatch, changes, sentence):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types of the fields reject some before
    with pytest.raises(ValueError, match=sentence):
        PseudoLabels(**FIELDS | changes)


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=20).filter(lambda labels: max(labels) >= 0))
@settings(deadline=None)
def test_from_labels_renumbers_clusters_and_computes_their_means(labels):
    embeddings = torch.randn(len(labels), 3)
    pseudo = PseudoLabels.from_labels(labels, embeddings)
    ids = sorted({label for label in labels if label >= 0})
    assert pseudo.labels.tolist() == [ids.index(label) if label >= 0 else -1 for label in labels]
    for cluster, (center, size) in enumerate(zip(pseudo.centers, pseudo.sizes, strict=True)):
        members = embeddings[pseudo.labels == cluster]
        assert size == len(members) > 0
        torch.testing.assert_close(center, members.mean(dim=0))
    assert PseudoLabels.from_labels(torch.tensor(labels)).centers is None


def test_pseudo_labels_reject_fields_of_other_types(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"`labels` must be a tensor of integers, got list\. Use PseudoLabels\.from_"):
        PseudoLabels([0, 1], None, torch.ones(2).long())
    with pytest.raises(TypeError, match=r"`sizes` must be integers, got torch\.float32"):
        PseudoLabels(torch.tensor([0, 1]), None, torch.ones(2))
    with pytest.raises(TypeError, match=r"`centers` must be a tensor \(k, d\), got ndarray"):
        PseudoLabels(torch.tensor([0, 1]), torch.ones(2, 2).numpy(), torch.ones(2).long())


def test_from_labels_rejects_labels_without_a_cluster_and_embeddings_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`labels` must assign images to clusters, got 2 labels below 0\."):
        PseudoLabels.from_labels([-1, -1])
    with pytest.raises(ValueError, match=r"`labels` must have shape \(3,\), one label per item, got shape \(2,\)"):
        PseudoLabels.from_labels([0, 1], torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"`embeddings` must be finite"):
        PseudoLabels.from_labels([0, 1], torch.full((2, 2), torch.nan))


@pytest.mark.parametrize(
    "kind", [Epochs, FitResult, LabelFreeScores, LossTerms, PseudoLabels, RoundReport, Scores, StepReport]
)
def test_results_are_frozen(kind):
    value = object.__new__(kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


def test_tensors_and_map_style_datasets_are_images_and_generators_are_not():
    assert isinstance(torch.zeros(2, 3, 4, 4), Images)
    assert isinstance(TensorDataset(torch.zeros(2, 3, 4, 4)), Images)
    assert not isinstance((image for image in torch.zeros(2, 3, 4, 4)), Images)
