import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udmlss.data import cub200, split_classes


@given(st.lists(st.integers(0, 9), min_size=2).filter(lambda labels: len(set(labels)) > 1), st.floats(0.5, 0.99))
def test_parts_of_a_split_contain_every_image_once_and_no_common_class(labels, fraction):
    first, second = split_classes(labels, fraction)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    labels = torch.tensor(labels)
    assert labels[first].max() < labels[second].min()
    assert first.tolist() == sorted(first.tolist())
    assert second.tolist() == sorted(second.tolist())


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 50), (0.29, 29), (0.01, 1), (0.999, 99), (np.float64(0.29), 29)])
def test_fraction_is_that_of_the_classes(fraction, count):
    labels = np.arange(100).repeat(np.arange(1, 101))
    first, _ = split_classes(labels, fraction)
    assert len(np.unique(labels[first.numpy()])) == count


def test_the_default_fraction_gives_the_split_of_cub200(cub100):
    train, test = (cub200(cub100, split).labels for split in ("train", "test"))
    first, second = split_classes(torch.cat([train, test + len(train.unique())]))
    assert (len(first), len(second)) == (len(train), len(test))


@pytest.mark.parametrize("fraction", [0, 0.2, 1])
def test_rejects_a_fraction_that_leaves_a_part_without_classes(fraction):
    error = rf"`fraction={fraction}` must leave a class in each part, got 4 classes\. Choose a fraction closer"
    with pytest.raises(ValueError, match=error):
        split_classes(torch.arange(4), fraction)


@pytest.mark.parametrize("fraction", [-0.5, 1.5])
def test_rejects_a_fraction_outside_0_to_1(fraction):
    with pytest.raises(ValueError, match=rf"`fraction` must lie in 0\.\.1, got {fraction}\."):
        split_classes([0, 1, 2, 3], fraction)


def test_rejects_to_split_a_single_class():
    with pytest.raises(ValueError, match=r"must leave a class in each part, got 1 classes\. .* or add images of other"):
        split_classes([0, 0, 0])


def test_rejects_to_split_images_without_a_class():
    with pytest.raises(ValueError, match=r"`labels` must be 0 or above, got 2 of 5 below 0\. Remove"):
        split_classes([0, -1, 1, -1, 2])
