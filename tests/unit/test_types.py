import dataclasses
from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from udmlss import ClusterPseudoLabeler, Epochs, FitResult, LossTerms, PseudoLabels, RoundReport, Scores
from udmlss.types import Images, Labeler


def pseudo_labels(**changes):
    labels = torch.tensor([0, -1, 1, 1, -1])
    return PseudoLabels(**{"labels": labels, "centers": torch.zeros(2, 3), "sizes": torch.tensor([1, 2])} | changes)


@given(st.integers(1, 20), st.integers(1, 10_000), st.integers(1, 500))
def test_passes_are_the_fewest_steps_that_draw_as_many_images_as_they_hold(count, n_images, batch_size):
    steps = Epochs(count).in_steps(n_images, batch_size)
    assert steps * batch_size >= count * n_images > (steps - 1) * batch_size


@given(st.sampled_from([0.25, 0.5, 1.75]), st.integers(1, 1000), st.integers(1, 50))
def test_passes_may_be_in_part(count, n_images, batch_size):
    assert Epochs(count).in_steps(n_images, batch_size) == ceil(Fraction(count) * n_images / batch_size)


def test_pseudo_labels_count_their_clusters_and_what_is_left_out():
    pseudo = pseudo_labels()
    assert pseudo.n_clusters == 2
    assert pseudo.n_unassigned == 2
    assert pseudo.agreement is None


def test_pseudo_labels_may_have_no_centroids():
    assert pseudo_labels(centers=None).n_clusters == 2


def test_pseudo_labels_can_be_compared():
    assert pseudo_labels() != pseudo_labels(labels=torch.tensor([0, 0, 1, 1, -1]))


@pytest.mark.parametrize("kind", [FitResult, LossTerms, Epochs, PseudoLabels, RoundReport, Scores])
def test_results_are_frozen(kind):
    value = object.__new__(kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


def test_tensors_and_map_style_data_sets_are_images_and_generators_are_not():
    assert isinstance(torch.zeros(2, 3, 4, 4), Images)
    assert isinstance(TensorDataset(torch.zeros(2, 3, 4, 4)), Images)
    assert not isinstance((image for image in torch.zeros(2, 3, 4, 4)), Images)


def test_the_labeler_is_a_labeler():
    assert isinstance(ClusterPseudoLabeler(2), Labeler)
    assert not isinstance(object(), Labeler)
