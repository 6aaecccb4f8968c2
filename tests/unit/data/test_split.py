import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udmlss.data import cub200, split_classes


@given(st.lists(st.integers(0, 9), min_size=2).filter(lambda labels: len(set(labels)) > 1), st.floats(0.5, 0.99))
def test_the_sides_hold_every_image_once_and_share_no_class(labels, share):
    labels = torch.tensor(labels)
    first, second = split_classes(labels, share)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    assert labels[first].max() < labels[second].min()
    assert first.tolist() == sorted(first.tolist())
    assert second.tolist() == sorted(second.tolist())


@pytest.mark.parametrize(("share", "count"), [(0.5, 50), (0.29, 29), (0.01, 1), (0.999, 99)])
def test_the_share_counts_classes_and_not_images(share, count):
    labels = torch.arange(100).repeat_interleave(torch.arange(1, 101))
    first, _ = split_classes(labels, share)
    assert len(labels[first].unique()) == count


def test_half_is_what_the_literature_takes(cub100):
    every = [cub200(cub100, split).labels for split in ("train", "test")]
    labels = torch.cat([every[0], every[1] + len(every[0].unique())])
    first, second = split_classes(labels)
    assert (len(first), len(second)) == (len(every[0]), len(every[1]))


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5])
def test_a_side_without_a_class_is_refused(share):
    with pytest.raises(ValueError, match=rf"`share={share}` must give each side a class, got 4 classes\. Pass a"):
        split_classes(torch.arange(4), share)


def test_one_class_cannot_be_split():
    with pytest.raises(ValueError, match=r"must give each side a class, got 1 classes\. .* or images of more"):
        split_classes(torch.zeros(4, dtype=torch.int64))


def test_images_without_a_class_are_refused():
    with pytest.raises(ValueError, match=r"a class for each image, got 2 of 5 below 0\. Leave"):
        split_classes(torch.tensor([0, -1, 1, -1, 2]))
