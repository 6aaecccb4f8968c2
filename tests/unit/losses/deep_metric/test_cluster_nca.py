"""NCA to the centres of groups: the definition, and what k-means makes the groups of."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch.nn import functional

from udmlss.losses import ClusterNCALoss
from udmlss.losses.deep_metric.cluster_nca import group_nca, k_means_groups


def naive(embeddings, labels, groups, scale):
    """Return the loss with each embedding's own group centred on its other members, one embedding at a time."""
    total = 0.0
    for i in range(len(labels)):
        own, every = [], []
        for group in sorted(set(groups)):
            members = [j for j in range(len(labels)) if groups[j] == group and j != i]
            if members:
                centre = sum(embeddings[j] for j in members) / len(members)
                every.append(math.exp(-scale * float(((embeddings[i] - centre) ** 2).sum())))
                own += every[-1:] if labels[members[0]] == labels[i] else []
        total -= math.log(sum(own) / sum(every)) if own else 0
    return total / len(labels)


def groups_of(labels, parts):
    """Return a group for each pair of a label and a part."""
    pairs = list(zip(labels, parts, strict=True))
    return [sorted(set(pairs)).index(pair) for pair in pairs]


def two_parts_each(n_clusters=3, members=5, d=8):
    """Return embeddings of clusters that lie in two places each, and the place of each embedding."""
    places = torch.arange(2 * n_clusters).repeat_interleave(members)
    centres = torch.linalg.qr(torch.randn(d, d)).Q[: 2 * n_clusters]
    order = torch.randperm(len(places))
    embeddings = functional.normalize(centres[places] + 0.02 * torch.randn(len(places), d))
    return embeddings[order].double(), places[order] % n_clusters, places[order]


def same_groups(left, right):
    return torch.equal(left[:, None] == left, right[:, None] == right)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_the_loss_is_the_one_defined_for_any_groups(pairs, seed):
    labels = [label for label, _ in pairs]
    groups = groups_of(labels, [part for _, part in pairs])
    embeddings = torch.randn(len(pairs), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = naive(embeddings, labels, groups, scale=2)
    found = group_nca(embeddings, torch.tensor(labels), torch.tensor(groups), scale=2).item()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_clusters", [1, 4, 6, 30, 100])
def test_the_loss_is_that_of_the_groups_of_k_means_beside_one_hot_clusters(n_clusters):
    embeddings, labels, _ = two_parts_each()
    embeddings = functional.normalize(embeddings + 0.3 * torch.randn_like(embeddings))
    one_hot = torch.stack([0.1 * (labels == cluster) for cluster in range(3)], dim=1)
    points = torch.cat([embeddings, one_hot], dim=1).tolist()
    ranks = sorted(range(30), key=points.__getitem__)
    found = KMeans(min(n_clusters, 30), n_init=1, random_state=0).fit_predict([points[i] for i in ranks])
    parts = [int(found[ranks.index(i)]) for i in range(30)]
    expected = naive(embeddings, labels.tolist(), groups_of(labels.tolist(), parts), scale=16)
    assert ClusterNCALoss(n_clusters)(embeddings, labels).item() == pytest.approx(expected, abs=1e-6)


def test_places_far_apart_become_groups():
    embeddings, labels, places = two_parts_each()
    assert same_groups(k_means_groups(embeddings, labels, 6, label_weight=0.1, seed=0), places)


@pytest.mark.parametrize("n_clusters", [1, 2, 5, 50])
def test_no_group_holds_two_clusters_and_groups_are_numbered_without_gaps(n_clusters):
    embeddings, labels = torch.ones(12, 3).index_fill(0, torch.tensor([3, 7]), 2), torch.arange(4).repeat(3)
    groups = k_means_groups(embeddings, labels, n_clusters, label_weight=0.1, seed=0)
    assert groups.unique().tolist() == list(range(int(groups.max()) + 1))
    assert all(len(labels[groups == group].unique()) == 1 for group in groups)


@pytest.mark.parametrize("label_weight", [0, 0.1])
def test_order_and_repetition_of_the_rows_make_no_difference_to_the_groups(label_weight):
    embeddings, labels = torch.randn(30, 4), torch.randint(3, (30,))
    embeddings, labels = torch.cat([embeddings, embeddings[:9]]), torch.cat([labels, labels[:9]])
    groups = k_means_groups(embeddings, labels, 8, label_weight=label_weight, seed=0)
    order = torch.randperm(39)
    again = k_means_groups(embeddings[order], labels[order], 8, label_weight=label_weight, seed=0)
    assert same_groups(again, groups[order])
    assert torch.equal(groups[30:], groups[:9])


def test_the_seed_and_the_weight_of_labels_reach_k_means():
    embeddings, labels = torch.randn(60, 4), torch.randint(6, (60,))
    groups = k_means_groups(embeddings, labels, 8, label_weight=0.1, seed=0)
    assert not same_groups(k_means_groups(embeddings, labels, 8, label_weight=0.1, seed=1), groups)
    by_label = k_means_groups(embeddings, labels, 6, label_weight=1000, seed=0)
    assert same_groups(by_label, labels)


def test_a_cluster_on_both_sides_of_another_is_told_from_it_by_its_groups():
    degrees = torch.tensor([0.0, 1, 59, 60, 61, 119, 120]).deg2rad()
    embeddings, labels = torch.stack([degrees.cos(), degrees.sin()], dim=1), torch.tensor([0, 0, 1, 1, 1, 0, 0])
    whole = group_nca(embeddings, labels, labels, scale=16)
    assert ClusterNCALoss(3)(embeddings, labels) < 1e-3 * whole


def test_the_gradient_runs_through_the_centres():
    embeddings, labels = torch.randn(9, 4, dtype=torch.float64, requires_grad=True), torch.arange(3).repeat(3)
    assert torch.autograd.gradcheck(lambda rows: group_nca(rows, labels, labels, scale=2), embeddings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
    embeddings = torch.eye(4)
    embeddings[2, 1] = value
    with pytest.raises(ValueError, match=r"`embeddings` must be finite, got 1 of 4 rows"):
        ClusterNCALoss()(embeddings, torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"n_clusters": 0}, "`n_clusters` must be at least 1, got 0"),
        ({"scale": 0}, "`scale` must be above 0, got 0"),
        ({"label_weight": -1}, "`label_weight` must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chosen, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClusterNCALoss(**chosen)
