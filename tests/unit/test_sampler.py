import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.common_functions import get_train_dataloader
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from udmlss import PseudoLabelSampler


def shuffled_labels(sizes, n_unassigned=0, seed=0):
    """Return labels of clusters of these sizes, and -1 for unassigned images, in random order."""
    labels = torch.tensor([-1] * n_unassigned + [cluster for cluster, size in enumerate(sizes) for _ in range(size)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@st.composite
def cases(draw):
    """Generate labels of clusters of any sizes, with valid options of a sampler."""
    least = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(0, 9), min_size=2, max_size=9).filter(lambda s: sum(n >= least for n in s) >= 2))
    labels = shuffled_labels(sizes, draw(st.integers(0, 5)), draw(st.integers(0, 99)))
    options = {
        "clusters_per_batch": draw(st.integers(2, sum(size >= least for size in sizes))),
        "samples_per_cluster": draw(st.integers(2, 5)),
        "n_batches": draw(st.none() | st.integers(1, 12)),
        "min_cluster_size": least,
        "seed": draw(st.integers(0, 2**40)),
    }
    return labels, options


def clusters_in(batch, labels, k):
    """Return the cluster of each group of k adjacent images, which must all be of one cluster."""
    groups = [labels[batch[start : start + k]].tolist() for start in range(0, len(batch), k)]
    assert all(len(set(group)) == 1 for group in groups)
    return [group[0] for group in groups]


@given(cases())
@settings(max_examples=80, deadline=None)
def test_every_batch_holds_p_clusters_with_k_images_each(case):
    labels, options = case
    p, k = options["clusters_per_batch"], options["samples_per_cluster"]
    sizes = Counter(labels.tolist())
    for batch in PseudoLabelSampler(labels, **options):
        assert len(batch) == p * k
        assert all(type(index) is int for index in batch)
        clusters = clusters_in(batch, labels, k)
        assert len(set(clusters)) == p
        times = Counter(batch)
        for cluster in clusters:
            size = sizes[cluster]
            assert cluster >= 0
            assert size >= options["min_cluster_size"]
            members = (labels == cluster).nonzero().flatten().tolist()
            assert {times[index] for index in members} <= {k // size, -(-k // size)}  # repeated evenly, only if needed


@given(cases())
@settings(max_examples=80, deadline=None)
def test_an_epoch_covers_clusters_and_the_images_of_each_cluster_equally(case):
    labels, options = case
    sampler = PseudoLabelSampler(labels, **options)
    times = Counter(index for batch in sampler for index in batch)
    counts = Counter(c for batch in sampler for c in clusters_in(batch, labels, options["samples_per_cluster"]))
    sizes = Counter(labels[labels >= 0].tolist())
    eligible = [cluster for cluster, size in sizes.items() if size >= options["min_cluster_size"]]
    assert max(counts[cluster] for cluster in eligible) - min(counts[cluster] for cluster in eligible) <= 1
    for cluster in eligible:
        members = [times[index] for index in (labels == cluster).nonzero().flatten().tolist()]
        assert max(members) - min(members) <= 1


@given(cases(), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_all_ranks_together_see_the_batches_of_one_process(case, world_size, epoch):
    labels, options = case
    ranks = [PseudoLabelSampler(labels, **options, rank=rank, world_size=world_size) for rank in range(world_size)]
    n_batches = len(ranks[0])
    alone = PseudoLabelSampler(labels, **options | {"n_batches": n_batches * world_size})
    for sampler in [*ranks, alone]:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert [len(part) for part in batches] == [len(sampler) for sampler in ranks] == [n_batches] * world_size
    assert [batch for step in zip(*batches, strict=True) for batch in step] == list(alone)


@given(cases(), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_batches_of_a_step_have_at_most_one_cluster_of_each_coarse_cluster(case, world_size):
    labels, options = case
    first = min(c for c, size in Counter(labels.tolist()).items() if c >= 0 and size >= options["min_cluster_size"])
    coarse = (labels > first).long()
    options |= {"clusters_per_batch": 2, "n_batches": 12, "coarse_labels": coarse, "world_size": world_size}
    ranks = [list(PseudoLabelSampler(labels, **options, rank=rank)) for rank in range(world_size)]
    for step in zip(*ranks, strict=True):
        assert len({(coarse[index].item(), labels[index].item()) for batch in step for index in batch}) == 2


def test_clusters_are_sampled_equally_if_coarse_clusters_have_equally_many():
    labels, coarse = shuffled_labels([5] * 24), torch.arange(24) // 4
    sampler = PseudoLabelSampler(labels, 3, 2, coarse_labels=coarse[labels], n_batches=400)
    times = Counter(cluster for batch in sampler for cluster in clusters_in(batch, labels, 2))
    assert max(times.values()) - min(times.values()) <= 4
    assert list(PseudoLabelSampler(labels, 3, 2, coarse_labels=labels)) == list(PseudoLabelSampler(labels, 3, 2))


@given(st.integers(1, 3), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_the_images_of_a_cluster_are_sampled_equally_in_coarse_clusters_of_any_size(world_size, seed):
    labels, coarse = shuffled_labels([6] * 12), torch.tensor([0] * 8 + [1, 2, 3, 4])
    options = {"coarse_labels": coarse[labels], "n_batches": 60, "world_size": world_size, "seed": seed}
    times = Counter[int]()
    for rank in range(world_size):
        times.update(index for batch in PseudoLabelSampler(labels, 3, 2, **options, rank=rank) for index in batch)
    for cluster in range(12):
        of_cluster = [times[index] for index in (labels == cluster).nonzero().flatten().tolist()]
        assert max(of_cluster) - min(of_cluster) <= 1


def test_labels_may_be_any_large_integers():
    labels = torch.tensor([0, 0, 1, 1, 2**62, 2**62])
    assert sorted(next(iter(PseudoLabelSampler(labels, 3, 2)))) == [0, 1, 2, 3, 4, 5]


@given(cases(), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_the_length_of_the_dataset_by_default(case, world_size):
    labels, options = case
    sampler = PseudoLabelSampler(labels, **options, world_size=world_size)
    sizes = Counter(labels[labels >= 0].tolist()).values()
    n_eligible = sum(size for size in sizes if size >= options["min_cluster_size"])
    batch_size = options["clusters_per_batch"] * options["samples_per_cluster"]
    assert sampler.batch_size == batch_size
    assert len(sampler) == (options["n_batches"] or max(1, n_eligible // (batch_size * world_size)))


@given(cases(), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_views_repeat_each_sampled_image(case, views):
    labels, options = case
    options["n_batches"] = options["n_batches"] or 5
    once, several = PseudoLabelSampler(labels, **options), PseudoLabelSampler(labels, **options, views=views)
    assert [[index for index in batch for _ in range(views)] for batch in once] == list(several)
    assert several.batch_size == once.batch_size * views


def test_an_epoch_has_the_same_number_of_images_for_any_number_of_views():
    labels = torch.arange(10).repeat(24)
    assert [len(PseudoLabelSampler(labels, 4, 3, views=views)) for views in (1, 2, 4)] == [20, 10, 5]


def test_one_image_per_cluster_is_enough_with_two_views():
    labels = torch.arange(10).repeat(3)
    assert all(len(set(batch)) == 5 for batch in PseudoLabelSampler(labels, 5, 1, views=2))


def test_clusters_of_different_sizes_are_sampled_equally():
    labels = shuffled_labels([900, 90, 10], n_unassigned=50)
    sampler = PseudoLabelSampler(labels, clusters_per_batch=2, samples_per_cluster=5, n_batches=300)
    assert Counter(labels[index].item() for batch in sampler for index in batch) == {0: 1000, 1: 1000, 2: 1000}


def test_every_cluster_is_sampled_before_one_is_sampled_again():
    labels = shuffled_labels([3] * 7)
    sampler = PseudoLabelSampler(labels, clusters_per_batch=3, samples_per_cluster=2, n_batches=7)
    clusters = [cluster for batch in sampler for cluster in clusters_in(batch, labels, 2)]
    for start in range(0, 21, 7):
        assert sorted(clusters[start : start + 7]) == list(range(7))


def test_the_images_of_a_cluster_are_combined_differently_in_every_epoch():
    sampler = PseudoLabelSampler(shuffled_labels([6, 6]), clusters_per_batch=2, samples_per_cluster=2, n_batches=1)
    pairs = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        pairs |= {frozenset(batch[start : start + 2]) for batch in sampler for start in (0, 2)}
    assert len(pairs) > 10


def test_clusters_are_combined_differently_in_every_permutation():
    labels = shuffled_labels([2] * 12)
    sampler = PseudoLabelSampler(labels, clusters_per_batch=3, samples_per_cluster=2, n_batches=40)
    assert len({frozenset(clusters_in(batch, labels, 2)) for batch in sampler}) > 30


def test_batches_depend_on_the_seed_and_the_epoch_alone():
    def batches(seed, epoch, *, other_epoch_first=False):
        sampler = PseudoLabelSampler(shuffled_labels([20] * 6), 3, 4, seed=seed)
        if other_epoch_first:
            sampler.set_epoch(epoch + 1)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    found = {(seed, epoch): str(batches(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(set(found.values())) == 16
    assert str(batches(2, 1)) == str(batches(np.int64(2), np.int64(1), other_epoch_first=True)) == found[2, 1]


def test_iterators_are_independent_and_set_epoch_does_not_change_a_started_one():
    sampler = PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)
    expected = list(sampler)
    assert [pair[0] for pair in zip(sampler, sampler, strict=True)] == expected
    batches = iter(sampler)
    first = next(batches)
    sampler.set_epoch(1)
    assert [first, *batches] == expected


def test_does_not_use_global_random_states():
    sampler = PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    before = list(sampler)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.rand(1)
    assert before == list(sampler)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_accepts_it_as_its_batch_sampler(num_workers):
    labels = shuffled_labels([5] * 6, n_unassigned=3)
    sampler = PseudoLabelSampler(labels, 3, 2)
    loader = DataLoader(TensorDataset(torch.arange(33), labels), batch_sampler=sampler, num_workers=num_workers)
    assert isinstance(sampler, BatchSampler)
    assert len(loader) == len(sampler) == 5
    assert [index.tolist() for index, _ in loader] == list(sampler)


def test_pytorch_metric_learning_accepts_it_as_a_batch_sampler():
    sampler = PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)
    loader = get_train_dataloader(TensorDataset(torch.arange(30)), 1, sampler, 0, None)
    assert [index.tolist() for (index,) in loader] == list(sampler)


@pytest.mark.parametrize("convert", [torch.Tensor.char, torch.Tensor.int, torch.Tensor.numpy, torch.Tensor.tolist])
def test_accepts_integer_labels_of_any_kind(convert):
    labels = shuffled_labels([5] * 6, n_unassigned=3)
    assert list(PseudoLabelSampler(convert(labels), 3, 2)) == list(PseudoLabelSampler(labels, 3, 2))


def test_accepts_numbers_of_numpy_and_gaps_between_the_numbers_of_clusters():
    labels = torch.arange(100).repeat(9)
    sampler = PseudoLabelSampler(labels, np.int8(60), np.int8(2), views=np.int8(3), n_batches=np.int64(4))
    assert list(sampler) == list(PseudoLabelSampler(labels, 60, 2, views=3, n_batches=4))
    labels = [-7, 40, 40, 2, 2, 2, 11]
    for batch in PseudoLabelSampler(labels, 2, 2, n_batches=5):
        assert sorted(clusters_in(batch, torch.tensor(labels), 2)) == [2, 40]


@pytest.mark.parametrize("convert", [torch.Tensor.clone, torch.Tensor.numpy])
def test_copies_the_labels(convert):
    labels = convert(shuffled_labels([5] * 6))
    sampler = PseudoLabelSampler(labels, 3, 2)
    before = list(sampler)
    labels[:] = 0
    assert list(sampler) == before


def test_has_a_short_repr():
    expected = "PseudoLabelSampler(n_clusters=6, clusters_per_batch=3, samples_per_cluster=2, views=1, n_batches=5)"
    assert repr(PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"clusters_per_batch": 4},
            r"at least 4 clusters with 2 or .* got 3 \(.* are \[9, 4, 3, 1, 1\]\)\. Lower it, or .* finds larger",
        ),
        ({"clusters_per_batch": 6}, r"at least 6 clusters .* got 3 .* Lower it, or use a labeler that finds more"),
        ({"min_cluster_size": 5}, r"2 clusters with 5 or more images, got 1 .* Use a labeler that finds larger"),
        ({"clusters_per_batch": 1}, r"`clusters_per_batch` must be at least 2, got 1\. Raise it\."),
        ({"samples_per_cluster": 1}, r"`samples_per_cluster` must be at least 2, got 1\. Raise it\."),
        ({"samples_per_cluster": 0, "views": 2}, r"`samples_per_cluster` must be at least 1, got 0\. Raise it\."),
        ({"views": 0}, r"`views` must be at least 1, got 0\. Raise it\."),
        ({"min_cluster_size": 0}, r"`min_cluster_size` must be at least 1, got 0\. Raise it\."),
        ({"n_batches": 0}, r"`n_batches` must be at least 1, got 0\. Raise it\."),
        ({"seed": -1}, r"`seed` must be at least 0, got -1\. Raise it\."),
        ({"world_size": 0}, r"`world_size` must be at least 1, got 0\. Raise it\."),
        ({"rank": 2, "world_size": 2}, r"`rank` must lie in 0\.\.1, got 2\."),
        ({"rank": -1}, r"`rank` must lie in 0\.\.0, got -1\."),
        ({"coarse_labels": [0] * 18}, r"`clusters_per_batch=2` must not exceed the number of coarse clusters, got 1\."),
        ({"coarse_labels": range(18)}, r"Each cluster must lie in one coarse .*, got cluster 0 in several\. Pass"),
    ],
)
def test_rejects_invalid_options(options, message):
    labels = shuffled_labels([9, 4, 3, 1, 1])
    with pytest.raises(ValueError, match=message):
        PseudoLabelSampler(labels, **{"clusters_per_batch": 2, "samples_per_cluster": 2} | options)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array([0.0, 0.0, 1.0, 1.0]), TypeError, r"`labels` must be integers, got .*float64\."),
        (np.array([[0, 0], [1, 1]]), ValueError, r"one label per item, got shape \(2, 2\)\."),
        (torch.full((5,), -1), ValueError, r"got 0 \(the largest sizes are \[\]\)"),
    ],
)
def test_rejects_labels_that_are_not_one_integer_per_image_or_have_no_cluster(labels, error, message):
    with pytest.raises(error, match=message):
        PseudoLabelSampler(labels, 2, 2)


def test_rejects_a_negative_epoch():
    with pytest.raises(ValueError, match="`epoch` must be at least 0, got -1"):
        PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2).set_epoch(-1)
