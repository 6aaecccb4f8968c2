import random
from collections import Counter

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.common_functions import get_train_dataloader
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from udmlss import PseudoLabelSampler


def shuffled_labels(sizes, left_out=0, seed=0):
    """Labels of clusters of these sizes, and -1 for what is left out, in random order."""
    labels = torch.tensor([-1] * left_out + [cluster for cluster, size in enumerate(sizes) for _ in range(size)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@st.composite
def cases(draw):
    """Labels of any sizes with the settings of a sampler that can draw from them."""
    least = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(0, 9), min_size=2, max_size=9).filter(lambda s: sum(n >= least for n in s) >= 2))
    labels = shuffled_labels(sizes, draw(st.integers(0, 5)), draw(st.integers(0, 99)))
    settings = {
        "clusters_per_batch": draw(st.integers(2, sum(size >= least for size in sizes))),
        "samples_per_cluster": draw(st.integers(2, 5)),
        "n_batches": draw(st.none() | st.integers(1, 12)),
        "min_cluster_size": least,
        "seed": draw(st.integers(0, 2**40)),
    }
    return labels, settings


def turns_in(batch, labels, samples_per_cluster):
    """Return the cluster of each run of K images; every run must be of one cluster."""
    runs = [labels[batch[i : i + samples_per_cluster]].tolist() for i in range(0, len(batch), samples_per_cluster)]
    assert all(len(set(run)) == 1 for run in runs)
    return [run[0] for run in runs]


@given(cases())
@settings(max_examples=80, deadline=None)
def test_a_batch_lists_k_images_each_of_p_clusters_cluster_by_cluster(case):
    labels, settings = case
    p, k = settings["clusters_per_batch"], settings["samples_per_cluster"]
    for batch in PseudoLabelSampler(labels, **settings):
        assert len(batch) == p * k
        assert all(type(index) is int for index in batch)
        assert len(set(turns_in(batch, labels, k))) == p


@given(cases(), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_views_repeat_each_image_in_a_row_and_change_no_draw(case, views):
    labels, settings = case
    settings["n_batches"] = settings["n_batches"] or 5
    once, several = PseudoLabelSampler(labels, **settings), PseudoLabelSampler(labels, **settings, views=views)
    assert [[index for index in batch for _ in range(views)] for batch in once] == list(several)
    assert several.batch_size == once.batch_size * views


def test_an_epoch_holds_as_many_images_whatever_the_views():
    labels = torch.arange(10).repeat(24)
    assert [len(PseudoLabelSampler(labels, 4, 3, views=views)) for views in (1, 2, 4)] == [20, 10, 5]


def test_with_a_second_view_one_image_a_cluster_is_enough():
    labels = torch.arange(10).repeat(3)
    assert all(len(set(batch)) == 5 for batch in PseudoLabelSampler(labels, 5, 1, views=2))
    with pytest.raises(ValueError, match="`samples_per_cluster` must be at least 2, got 1"):
        PseudoLabelSampler(labels, 5, 1)
    with pytest.raises(ValueError, match="`views` must be at least 1, got 0"):
        PseudoLabelSampler(labels, 5, 2, views=0)


@given(cases())
@settings(max_examples=80, deadline=None)
def test_what_is_left_out_and_clusters_too_small_are_never_drawn(case):
    labels, settings = case
    drawn = {index for batch in PseudoLabelSampler(labels, **settings) for index in batch}
    sizes = Counter(labels.tolist())
    assert all(labels[index] >= 0 and sizes[int(labels[index])] >= settings["min_cluster_size"] for index in drawn)


@given(cases())
@settings(max_examples=80, deadline=None)
def test_images_repeat_in_a_batch_only_where_their_cluster_has_too_few_and_then_evenly(case):
    labels, settings = case
    sizes, k = Counter(labels.tolist()), settings["samples_per_cluster"]
    for batch in PseudoLabelSampler(labels, **settings):
        times = Counter(batch)
        for cluster in turns_in(batch, labels, k):
            size = sizes[cluster]
            members = (labels == cluster).nonzero().flatten().tolist()
            assert {times[index] for index in members} <= {k // size, -(-k // size)}


@given(cases())
@settings(max_examples=80, deadline=None)
def test_in_an_epoch_every_cluster_takes_as_many_turns_and_every_image_of_a_cluster_as_many_places(case):
    labels, settings = case
    sampler = PseudoLabelSampler(labels, **settings)
    times = Counter(index for batch in sampler for index in batch)
    turns = Counter(c for batch in sampler for c in turns_in(batch, labels, settings["samples_per_cluster"]))
    sizes = Counter(labels[labels >= 0].tolist())
    drawable = [cluster for cluster, size in sizes.items() if size >= settings["min_cluster_size"]]
    assert max(turns[cluster] for cluster in drawable) - min(turns[cluster] for cluster in drawable) <= 1
    for cluster in drawable:
        members = [times[index] for index in (labels == cluster).nonzero().flatten().tolist()]
        assert max(members) - min(members) <= 1


def test_clusters_of_very_different_sizes_fill_as_many_places():
    labels = shuffled_labels([900, 90, 10], left_out=50)
    sampler = PseudoLabelSampler(labels, clusters_per_batch=2, samples_per_cluster=5, n_batches=300)
    emitted = Counter(labels[index].item() for batch in sampler for index in batch)
    assert emitted == {0: 1000, 1: 1000, 2: 1000}


def test_a_turn_goes_to_each_cluster_before_any_comes_again():
    labels = shuffled_labels([3] * 7)
    sampler = PseudoLabelSampler(labels, clusters_per_batch=3, samples_per_cluster=2, n_batches=7)
    turns = [cluster for batch in sampler for cluster in turns_in(batch, labels, 2)]
    for begin in range(0, 21, 7):
        assert sorted(turns[begin : begin + 7]) == list(range(7))


def test_a_cluster_shows_other_images_together_in_other_epochs():
    sampler = PseudoLabelSampler(shuffled_labels([6, 6]), clusters_per_batch=2, samples_per_cluster=2, n_batches=1)
    synchronized = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        synchronized |= {frozenset(batch[begin : begin + 2]) for batch in sampler for begin in (0, 2)}
    assert len(synchronized) > 10


def test_clusters_meet_others_in_every_cycle():
    labels = shuffled_labels([2] * 12)
    sampler = PseudoLabelSampler(labels, clusters_per_batch=3, samples_per_cluster=2, n_batches=40)
    synchronized = {frozenset(turns_in(batch, labels, 2)) for batch in sampler}
    assert len(synchronized) > 30


@given(cases(), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_ranks_together_draw_what_one_process_would_in_turn_and_as_many_batches_each(case, world_size, epoch):
    labels, settings = case
    ranks = [PseudoLabelSampler(labels, **settings, rank=rank, world_size=world_size) for rank in range(world_size)]
    n_batches = len(ranks[0])
    alone = PseudoLabelSampler(labels, **settings | {"n_batches": n_batches * world_size})
    for sampler in [*ranks, alone]:
        sampler.set_epoch(epoch)
    dealt = [list(sampler) for sampler in ranks]
    assert [len(batches) for batches in dealt] == [len(sampler) for sampler in ranks] == [n_batches] * world_size
    assert [batch for synchronized in zip(*dealt, strict=True) for batch in synchronized] == list(alone)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_batches_are_a_pure_function_of_the_arguments_and_the_epoch(case):
    labels, settings = case
    first, second = (PseudoLabelSampler(labels, **settings) for _ in range(2))
    once = list(first)
    assert once == list(first) == list(second)
    first.set_epoch(1)
    list(first)
    first.set_epoch(0)
    assert once == list(first)


@pytest.mark.parametrize("change", ["seed", "epoch"])
def test_another_seed_and_another_epoch_give_other_batches(change):
    def batches(value):
        sampler = PseudoLabelSampler(shuffled_labels([20] * 6), 3, 4, seed=value if change == "seed" else 0)
        sampler.set_epoch(value if change == "epoch" else 0)
        return list(sampler)

    assert len({str(batches(value)) for value in range(5)}) == 5


def test_a_seed_and_an_epoch_do_not_make_up_for_each_other():
    labels = shuffled_labels([20] * 6)
    one, other = PseudoLabelSampler(labels, 3, 4, seed=1), PseudoLabelSampler(labels, 3, 4, seed=0)
    other.set_epoch(1)
    assert list(one) != list(other)


@given(cases(), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_one_pass_over_what_can_be_drawn_unless_its_length_is_given(case, world_size):
    labels, settings = case
    sampler = PseudoLabelSampler(labels, **settings, world_size=world_size)
    sizes = Counter(labels[labels >= 0].tolist()).values()
    drawable = sum(size for size in sizes if size >= settings["min_cluster_size"])
    batch_size = settings["clusters_per_batch"] * settings["samples_per_cluster"]
    assert sampler.batch_size == batch_size
    assert len(sampler) == (settings["n_batches"] or max(1, drawable // (batch_size * world_size)))
    assert len(list(sampler)) == len(sampler)


def test_two_passes_at_once_do_not_disturb_each_other():
    sampler = PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)
    assert [pair[0] for pair in zip(sampler, sampler, strict=True)] == list(sampler)


def test_an_epoch_in_the_middle_of_a_pass_is_for_the_next_one():
    sampler = PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)
    expected = list(sampler)
    batches = iter(sampler)
    begun = [next(batches)]
    sampler.set_epoch(1)
    assert begun + list(batches) == expected


def test_no_global_random_state_is_read_or_changed():
    sampler = PseudoLabelSampler(shuffled_labels([5] * 6), 3, 2)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    before = list(sampler)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.rand(1)
    assert before == list(sampler)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_data_loader_takes_it_as_its_batch_sampler(n_workers):
    labels = shuffled_labels([5] * 6, left_out=3)
    sampler = PseudoLabelSampler(labels, 3, 2)
    loader = DataLoader(TensorDataset(torch.arange(33), labels), batch_sampler=sampler, num_workers=n_workers)
    assert isinstance(sampler, BatchSampler)
    assert len(loader) == len(sampler) == 5
    assert [index.tolist() for index, _ in loader] == list(sampler)


def test_pytorch_metric_learning_takes_it_where_it_takes_a_batch_sampler():
    labels = shuffled_labels([5] * 6)
    sampler = PseudoLabelSampler(labels, 3, 2)
    loader = get_train_dataloader(TensorDataset(torch.arange(30)), 1, sampler, 0, None)
    assert [index.tolist() for (index,) in loader] == list(sampler)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_whole_numbers_of_any_type_are_labels(dtype):
    labels = shuffled_labels([5] * 6, left_out=3)
    assert list(PseudoLabelSampler(labels.to(dtype), 3, 2)) == list(PseudoLabelSampler(labels, 3, 2))


def test_ids_may_have_gaps():
    labels = torch.tensor([-7, 40, 40, 2, 2, 2, 11])
    for batch in PseudoLabelSampler(labels, 2, 2, n_batches=5):
        assert sorted(turns_in(batch, labels, 2)) == [2, 40]


def test_labels_changed_later_change_no_batch_that_the_sampler_gives():
    labels = shuffled_labels([5] * 6)
    sampler = PseudoLabelSampler(labels, 3, 2)
    before = list(sampler)
    labels.fill_(0)
    assert list(sampler) == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"clusters_per_batch": 4},
            r"at least 4 clusters with 2 or .* found 3 \(.* are \[9, 4, 3, 1, 1\]\)\. Lower it, or raise `n_clusters`",
        ),
        ({"min_cluster_size": 5}, r"needs at least 2 clusters with 5 or more images, got 1 "),
        ({"clusters_per_batch": 1}, r"`clusters_per_batch` must be at least 2, got 1\. Raise it\."),
        ({"samples_per_cluster": 1}, r"`samples_per_cluster` must be at least 2, got 1\. Raise it\."),
        ({"min_cluster_size": 0}, r"`min_cluster_size` must be at least 1, got 0\. Raise it\."),
        ({"n_batches": 0}, r"`n_batches` must be at least 1, got 0\. Raise it\."),
        ({"seed": -1}, r"`seed` must be at least 0, got -1\. Raise it\."),
        (
            {"rank": 2, "world_size": 2},
            r"`rank` must lie in 0\.\.world_size-1, got rank 2 of 2\. Count ranks from 0\.",
        ),
        ({"rank": -1}, r"found rank -1 of 1"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        PseudoLabelSampler(
            shuffled_labels([9, 4, 3, 1, 1]), **{"clusters_per_batch": 2, "samples_per_cluster": 2} | settings
        )


def test_labels_that_leave_everything_out_are_refused():
    with pytest.raises(ValueError, match=r"found 0 \(the largest sizes are \[\]\)"):
        PseudoLabelSampler(torch.full((5,), -1), 2, 2)


@pytest.mark.parametrize(
    ("labels", "kind", "sentence"),
    [
        ([0, 0, 1, 1], TypeError, r"`labels` must be a tensor \(n\), got list\. Use torch\.as_tensor\."),
        (np.array([0, 0, 1, 1]), TypeError, r"`labels` must be a tensor \(n\), got ndarray\."),
        (torch.tensor([0.0, 0.0, 1.0, 1.0]), TypeError, r"`labels` must be whole numbers, got torch\.float32\."),
        (torch.tensor([[0, 0], [1, 1]]), ValueError, r"one label per item, got shape \(2, 2\)\."),
    ],
)
def test_what_are_no_labels_is_refused(labels, kind, sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse it, too
    with pytest.raises(kind, match=sentence):
        PseudoLabelSampler(labels, 2, 2)
