"""Reliability by centers, the choice of clusters, and the order of their images."""

import pytest
import torch
from torch.nn import functional

from udmlss import PseudoLabels
from udmlss.report.clusters import by_typicality, choose_clusters, cluster_reliability, image_reliability


def test_the_reliability_is_the_margin_between_the_own_and_the_most_similar_other_center(run):
    labels, centers = run.pseudo_labels.labels, functional.normalize(run.pseudo_labels.centers)
    found = image_reliability(run.embeddings, run.pseudo_labels, seed=0)
    for row, label in enumerate(labels.tolist()):
        similarities = centers @ functional.normalize(run.embeddings[row], dim=0)
        others = torch.cat([similarities[:label], similarities[label + 1 :]])
        expected = similarities[label] - others.max() if label >= 0 else torch.tensor(torch.nan)
        torch.testing.assert_close(found[row], expected, equal_nan=True)
    means = [found[labels == cluster].mean() for cluster in range(run.pseudo_labels.n_clusters)]
    torch.testing.assert_close(cluster_reliability(found, run.pseudo_labels), torch.stack(means))


def test_the_reliability_of_the_labeler_is_used_where_it_is_known():
    labels, given = PseudoLabels.from_labels([0, 0, 1, 1, -1]), torch.tensor([1, 0.5, torch.nan, torch.nan, 1])
    object.__setattr__(labels, "reliability", given)  # some labelers compute it
    found = image_reliability(torch.eye(5), labels, seed=0)
    torch.testing.assert_close(found, given, equal_nan=True)
    torch.testing.assert_close(cluster_reliability(found, labels), torch.tensor([0.75, torch.nan]), equal_nan=True)


def test_a_single_cluster_has_a_reliability():
    labels = PseudoLabels.from_labels([0, 0])
    assert image_reliability(torch.ones(2, 3), labels, seed=0).tolist() == pytest.approx([1, 1])


def test_no_cluster_is_shown_twice_and_few_clusters_are_all_shown():
    sizes = torch.arange(1, 31)
    groups = choose_clusters(sizes, reliability=-sizes.float())
    assert [group.clusters for group in groups] == [[29, 28, 27, 26], [0, 1, 2, 3], [4, 5, 6, 7], [25, 24, 23, 22]]
    assert [group.clusters for group in choose_clusters(sizes[:3], sizes[:3].float())] == [[2, 1, 0]]
    for k in range(9, 18):
        shown = [cluster for group in choose_clusters(sizes[:k], torch.zeros(k)) for cluster in group.clusters]
        assert len(shown) == len(set(shown)) == min(k, 16)
    unknown = choose_clusters(sizes, torch.full((30,), torch.nan))
    assert [len(group.clusters) for group in unknown] == [4, 4, 0, 0]


def test_the_most_typical_image_comes_first():
    embeddings = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.1], [9.0, 9.0]])
    assert by_typicality(embeddings, PseudoLabels.from_labels([0, 1, 1, 1]), 1)[-1] == 3
    assert by_typicality(embeddings, PseudoLabels.from_labels([0, 1, 1, 1]), 0) == [0]
