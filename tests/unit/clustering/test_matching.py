import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from points import same_clusters
from sklearn.metrics import normalized_mutual_info_score

from udmlss.clustering import agreement, match_ids
from udmlss.clustering.matching import match_clusters


def largest_number_of_remaining_rows(labels, previous):
    """Count the rows that remain in their cluster, for the best choice of a previous cluster for each cluster."""
    k, k_previous = max(labels) + 1, max(previous) + 1
    return max(
        sum(label >= 0 and ids[label] == before for label, before in zip(labels, previous, strict=True))
        for ids in itertools.permutations(range(max(k, k_previous)), k)
    )


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 5)), min_size=1, max_size=20))
@settings(max_examples=160, deadline=None)
def test_as_many_rows_as_possible_remain_in_their_cluster(pairs):
    labels, previous = (torch.tensor(each) for each in zip(*pairs, strict=True))
    before = labels.clone(), previous.clone()
    renumbered, previous_ids = match_clusters(labels, previous)
    assert torch.equal(match_ids(labels, previous), renumbered)
    assert renumbered.dtype == torch.int64
    assert torch.equal(renumbered < 0, labels < 0)
    assert int(renumbered.max()) <= int(labels.max())
    assert same_clusters(renumbered, labels)
    k = int(labels.max()) + 1
    assert len(previous_ids) == k
    matched = previous_ids[previous_ids >= 0]
    assert len(matched.unique()) == len(matched)
    both = (labels >= 0) & (previous >= 0)
    remaining = int((previous_ids[renumbered[both]] == previous[both]).sum())
    assert remaining == largest_number_of_remaining_rows(labels.tolist(), previous.tolist())
    retained = (previous_ids >= 0) & (previous_ids < k)
    assert torch.equal(previous_ids[retained], torch.arange(k)[retained])
    assert torch.equal(labels, before[0])
    assert torch.equal(previous, before[1])


def test_a_new_cluster_gets_a_new_id_and_a_lost_cluster_releases_its_id():
    whole, split = [0, 0, 0, 1, 1, 1], [2, 2, 0, 1, 1, 1]
    assert match_ids(split, whole).tolist() == [0, 0, 2, 1, 1, 1]
    assert match_ids(whole, split).tolist() == [0, 0, 0, 1, 1, 1]
    renumbered, previous_ids = match_clusters([0, 0, -1, -1, 1, 1], previous=[0, 0, 1, 1, 2, 2])
    assert renumbered.tolist() == [0, 0, -1, -1, 1, 1]
    assert previous_ids.tolist() == [0, 2]


def test_many_clusters_are_matched_without_a_dense_table():
    previous = torch.arange(60_000) % 20_000  # a dense table would have 3.2 GB
    ids = torch.randperm(20_000)
    assert torch.equal(match_ids(ids[previous], previous), previous)


def adjusted_rand_by_hand(labels, previous):
    """Count pairs of rows that are in one cluster or in two, in each of the clusterings."""
    pairs = [
        (labels[i] == labels[j], previous[i] == previous[j])
        for i, j in itertools.combinations(range(len(labels)), 2)
        if min(labels[i], labels[j], previous[i], previous[j]) >= 0
    ]
    if not pairs:
        return None
    joined, separate = pairs.count((True, True)), pairs.count((False, False))
    only_new, only_old = pairs.count((True, False)), pairs.count((False, True))
    if only_new == only_old == 0:
        return 1.0
    scale = (joined + only_new) * (only_new + separate) + (joined + only_old) * (only_old + separate)
    return 2 * (joined * separate - only_new * only_old) / scale


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=15))
@settings(max_examples=60, deadline=None)
def test_agreement_is_the_adjusted_rand_index_of_the_rows_assigned_in_both(pairs):
    labels, previous = (list(each) for each in zip(*pairs, strict=True))
    expected = adjusted_rand_by_hand(labels, previous)
    found = agreement(labels, np.array(previous))
    assert found is expected is None or found == pytest.approx(expected, abs=1e-9)


def test_agreement_is_0_by_chance_also_with_many_clusters():
    labels, previous = torch.randint(0, 200, (2, 1500))
    assert normalized_mutual_info_score(labels, previous) > 0.6
    assert abs(agreement(labels, previous)) < 0.01
    assert agreement(torch.randperm(200)[labels], labels) == 1


@pytest.mark.parametrize("compare", [match_ids, agreement])
def test_rejects_labelings_that_do_not_match(compare):
    with pytest.raises(ValueError, match=r"`previous` must have shape \(3,\), one label per item, got shape \(2,\)"):
        compare([0, 1, 1], [0, 1])
    with pytest.raises(TypeError, match=r"`labels` must be integers, got float64"):
        compare(np.array([0.5, 1.0]), [0, 1])


def test_ids_that_no_cluster_can_have_are_ignored_or_rejected():
    assert match_ids([0, 0, 1, -5], previous=[7, 7, 10**15, -2]).tolist() == [0, 0, 1, -1]
    assert match_ids([-1, -1], previous=[0, 1]).tolist() == [-1, -1]
    with pytest.raises(ValueError, match=r"`labels` must be below 16777216, got 1000000000\. Renumber clusters"):
        match_ids([10**9, 0], previous=[0, 1])
    with pytest.raises(ValueError, match=r"`labels` must hold at least one label, got none\."):
        match_ids(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))
