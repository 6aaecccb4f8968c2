"""ClusterNCALoss, compared with its definition, and the groups of k-means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch.nn import functional

from udmlss.losses import ClusterNCALoss
from udmlss.losses.deep_metric.cluster_nca import group_nca, k_means_groups


def naive_loss(embeddings, labels, groups, scale):
    """Return the loss, computed with the center of the other members of each embedding's own group."""
    total = 0.0
    for i in range(len(labels)):
        own, all_groups = [], []
        for group in sorted(set(groups)):
            members = [j for j in range(len(labels)) if groups[j] == group and j != i]
            if members:
                center = sum(embeddings[j] for j in members) / len(members)
                all_groups.append(math.exp(-scale * float(((embeddings[i] - center) ** 2).sum())))
                own += all_groups[-1:] if labels[members[0]] == labels[i] else []
        total -= math.log(sum(own) / sum(all_groups)) if own else 0
    return total / len(labels)


def split_by_label(labels, parts):
    """Return the number of each row's pair of a label and a part."""
    pairs = list(zip(labels, parts, strict=True))
    return [sorted(set(pairs)).index(pair) for pair in pairs]


def clusters_of_two_parts(n_clusters=3, members=5, d=8):
    """Return embeddings of clusters that consist of two separate parts, their labels and their parts."""
    parts = torch.arange(2 * n_clusters).repeat_interleave(members)
    centers = torch.linalg.qr(torch.randn(d, d)).Q[: 2 * n_clusters]
    order = torch.randperm(len(parts))
    embeddings = functional.normalize(centers[parts] + 0.02 * torch.randn(len(parts), d))
    return embeddings[order].double(), parts[order] % n_clusters, parts[order]


def same_groups(left, right):
    return torch.equal(left[:, None] == left, right[:, None] == right)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_equals_the_definition_for_any_groups(pairs, seed):
    labels = [label for label, _ in pairs]
    groups = split_by_label(labels, [part for _, part in pairs])
    embeddings = torch.randn(len(pairs), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = naive_loss(embeddings, labels, groups, scale=2)
    value = group_nca(embeddings, torch.tensor(labels), torch.tensor(groups), scale=2).item()
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_clusters", [1, 6, 100])
def test_groups_are_those_of_k_means_with_one_hot_labels(n_clusters):
    embeddings, labels, _ = clusters_of_two_parts()
    embeddings = functional.normalize(embeddings + 0.3 * torch.randn_like(embeddings))
    one_hot = torch.stack([0.1 * (labels == cluster) for cluster in range(3)], dim=1)
    points = torch.cat([embeddings, one_hot], dim=1).tolist()
    ranks = sorted(range(30), key=points.__getitem__)
    k_means = KMeans(min(n_clusters, 30), n_init=1, random_state=0).fit_predict([points[i] for i in ranks])
    parts = [int(k_means[ranks.index(i)]) for i in range(30)]
    expected = naive_loss(embeddings, labels.tolist(), split_by_label(labels.tolist(), parts), scale=16)
    assert ClusterNCALoss(n_clusters)(embeddings, labels).item() == pytest.approx(expected, abs=1e-6)


def test_separate_parts_become_groups():
    embeddings, labels, parts = clusters_of_two_parts()
    assert same_groups(k_means_groups(embeddings, labels, 6, label_weight=0.1, seed=0), parts)


@pytest.mark.parametrize("n_clusters", [1, 2, 5, 50])
def test_groups_belong_to_one_cluster_and_are_numbered_without_gaps(n_clusters):
    embeddings, labels = torch.ones(12, 3).index_fill(0, torch.tensor([3, 7]), 2), torch.arange(4).repeat(3)
    groups = k_means_groups(embeddings, labels, n_clusters, label_weight=0.1, seed=0)
    assert groups.unique().tolist() == list(range(int(groups.max()) + 1))
    assert all(len(labels[groups == group].unique()) == 1 for group in groups)


@pytest.mark.parametrize("label_weight", [0, 0.1])
def test_groups_are_invariant_to_the_order_and_repetition_of_rows(label_weight):
    embeddings, labels = torch.randn(30, 4), torch.randint(3, (30,))
    embeddings, labels = torch.cat([embeddings, embeddings[:9]]), torch.cat([labels, labels[:9]])
    groups = k_means_groups(embeddings, labels, 8, label_weight=label_weight, seed=0)
    order = torch.randperm(39)
    again = k_means_groups(embeddings[order], labels[order], 8, label_weight=label_weight, seed=0)
    assert same_groups(again, groups[order])
    assert torch.equal(groups[30:], groups[:9])


def test_k_means_uses_the_seed_and_the_label_weight():
    embeddings, labels = torch.randn(60, 4), torch.randint(6, (60,))
    groups = k_means_groups(embeddings, labels, 8, label_weight=0.1, seed=0)
    assert not same_groups(k_means_groups(embeddings, labels, 8, label_weight=0.1, seed=1), groups)
    by_label = k_means_groups(embeddings, labels, 6, label_weight=1000, seed=0)
    assert same_groups(by_label, labels)


def test_groups_separate_a_cluster_on_both_sides_of_another():
    degrees = torch.tensor([0.0, 1, 59, 60, 61, 119, 120]).deg2rad()
    embeddings, labels = torch.stack([degrees.cos(), degrees.sin()], dim=1), torch.tensor([0, 0, 1, 1, 1, 0, 0])
    without_groups = group_nca(embeddings, labels, labels, scale=16)
    assert ClusterNCALoss(3)(embeddings, labels) < 1e-3 * without_groups


def test_gradient_flows_through_the_centers():
    embeddings, labels = torch.randn(9, 4, dtype=torch.float64, requires_grad=True), torch.arange(3).repeat(3)
    assert torch.autograd.gradcheck(lambda rows: group_nca(rows, labels, labels, scale=2), embeddings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rejects_embeddings_that_are_not_finite(value):
    embeddings = torch.eye(4)
    embeddings[2, 1] = value
    with pytest.raises(ValueError, match=r"`embeddings` must be finite, got 1 of 4 rows"):
        ClusterNCALoss()(embeddings, torch.tensor([0, 0, 1, 1]))
