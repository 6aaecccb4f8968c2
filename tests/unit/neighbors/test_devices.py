"""Clustering, search and scores of embeddings on a GPU, and on one without float64."""

import sys

import pytest
import torch
from kmeans_data import data_set
from pretended_gpu import OnGPU, pretended_gpu
from torch.nn import functional

from udmlss import (
    ClusterPseudoLabeler,
    _chunks,
    embedder_from_features,
    evaluate_embeddings,
    label_free_scores,
    metrics,
    pair_with_neighbors,
)
from udmlss.clustering import cluster_means, k_means, label_margins
from udmlss.clustering.kmeans import clusters
from udmlss.model_selection import effective_rank
from udmlss.neighbors import approximate, average_with_neighbors, nearest, neighbor_lists, shared_neighbor_graph

FUNCTIONS = {
    "nearest": lambda rows, _: nearest(rows, 3),
    "nearest with queries": lambda rows, _: nearest(rows, 3, queries=rows[:9].cpu()),
    "averages": lambda rows, _: average_with_neighbors(rows, 3),
    "pairs": lambda rows, _: pair_with_neighbors(rows),
    "lists of neighbors": lambda rows, _: neighbor_lists(rows, 3).similarities,
    "margins": lambda rows, labels: label_margins(shared_neighbor_graph(nearest(rows, 3)[1]), labels.clamp(min=0)),
    "retrieval": lambda rows, labels: metrics.retrieval(rows, labels, queries=rows[:9], query_labels=labels[:9]),
    "scores": evaluate_embeddings,
    "label-free scores": lambda rows, _: label_free_scores(rows, rows[:9].cpu(), range(9)),
    "effective rank": lambda rows, _: torch.tensor(effective_rank(torch.cat([rows, rows[:9]]))),
    "label-free scores of few rows": lambda rows, _: label_free_scores(rows[:7], rows[:3].cpu(), range(3)),
    "embedder": lambda rows, _: inner_products(rows),
    "k_means": lambda rows, _: k_means(rows, 8),
    "k_means with initial centers": lambda rows, _: k_means(rows, 8, start=rows[:5]),
    "means": lambda rows, labels: cluster_means(rows, labels.clamp(min=0), 9),
    "clusters": lambda rows, _: ClusterPseudoLabeler(8, average_neighbors=2).label(rows).labels,
    "more clusters than rows": lambda rows, _: k_means(torch.cat([rows[:20], rows[:20]]), 15, max_iter=0),
}


def inner_products(rows):
    """Return the inner products of the embeddings that an embedder computes from the rows."""
    weight = embedder_from_features(rows, rows.shape[1] // 2).weight.detach().cpu()
    embeddings = functional.normalize(rows.cpu()) @ weight.T
    return embeddings @ embeddings.T


def check_type(tensor, wrapped):
    """Raise the error of a GPU that has no float64."""
    if wrapped.dtype == torch.float64:
        raise TypeError
    tensor.wrapped = wrapped


@pytest.mark.parametrize("has_float64", [True, False])
@pytest.mark.parametrize("data", ["overlapping blobs", "very narrow cone", "scale 1e36"])
def test_results_on_a_gpu_are_those_on_the_cpu(monkeypatch, data, has_float64):
    monkeypatch.setattr(approximate, "_EXACT", 0)
    rows, _ = data_set(data)
    labels = torch.arange(len(rows)) % 9 - 1
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(clusters, "_warn_of_missing_faiss", lambda: None)
    if not has_float64:
        monkeypatch.setattr(_chunks, "_WITHOUT_FLOAT64", ("lazy",))
        monkeypatch.setattr(OnGPU, "__init__", check_type)
    for name, function in FUNCTIONS.items():
        expected = function(rows, labels)
        with pretended_gpu(monkeypatch) as device:
            found = function(rows.to(device), labels.to(device))
        assert_equal(name, found, expected)


def assert_equal(name, found, expected):
    """Check that results are equal, up to rounding, and are tensors, numbers or dataclasses of numbers."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found.wrapped if isinstance(found, OnGPU) else found, expected, msg=name)
    elif isinstance(expected, tuple):
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal(name, ours, theirs)
    else:
        for field, value in vars(expected).items():
            assert getattr(found, field) == pytest.approx(value), name
