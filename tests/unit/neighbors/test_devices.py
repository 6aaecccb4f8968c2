"""Clustering, search and scores of embeddings on a GPU, and on one without float64."""

import points
import pretended_gpu as support
import pytest
import torch
from kmeans_data import data_set
from pretended_gpu import OnGPU, pretended_gpu
from torch import nn
from torch.nn import functional

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    Rounds,
    _chunks,
    embedder_from_features,
    evaluate_embeddings,
    label_free_scores,
    metrics,
    pair_with_neighbors,
)
from udmlss.clustering import Communities, cluster_means, k_means, label_margins
from udmlss.clustering.kmeans import initial_centers
from udmlss.model_selection import effective_rank
from udmlss.neighbors import (
    approximate,
    average_with_neighbors,
    backends,
    nearest,
    neighbor_lists,
    shared_neighbor_graph,
)

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
    if not has_float64:
        monkeypatch.setattr(_chunks, "_WITHOUT_FLOAT64", ("lazy",))
        monkeypatch.setattr(OnGPU, "__init__", check_type)
    for name, function in FUNCTIONS.items():
        expected = function(rows, labels)
        with pretended_gpu(monkeypatch) as device:
            found = function(rows.to(device), labels.to(device))
        assert_equal(name, found, expected)


ON_A_GPU = {
    "exact lists": lambda rows, _: neighbor_lists(rows, 3, recall=1),
    "lists of cells": lambda rows, _: neighbor_lists(rows, 3),
    "averages": lambda rows, _: average_with_neighbors(rows, 3),
    "k_means": lambda rows, _: k_means(rows, 8),
    "clusters": lambda rows, _: ClusterPseudoLabeler(30, average_neighbors=2, reliability=True).label(rows),
    "communities": lambda rows, _: ClusterPseudoLabeler(Communities(5), average_neighbors=2).label(rows),
    "scores": evaluate_embeddings,
    "label-free scores": lambda rows, _: label_free_scores(rows, rows[:9], range(9)),
}


@pytest.mark.parametrize("name", ON_A_GPU)
def test_rows_on_a_gpu_are_not_copied_to_the_cpu(monkeypatch, name):
    monkeypatch.setattr(approximate, "_EXACT", 0)
    monkeypatch.setattr(initial_centers, "_MAX_CANDIDATES", 64)  # k-means++ compares these on the CPU
    rows, _ = points.blobs(k=30, each=50, d=64)
    copied, run = [0], support._run

    def record(function, args, kwargs):
        result = run(function, args, kwargs)
        is_copy = function in support.COPIES and not isinstance(result, OnGPU)
        copied.extend(each.numel() for each in args if is_copy and isinstance(each, OnGPU))
        return result

    with pretended_gpu(monkeypatch) as device:
        rows, labels = rows.to(device), (torch.arange(len(rows)) % 9).to(device)
        monkeypatch.setattr(support, "_run", record)
        ON_A_GPU[name](rows, labels)
    assert max(copied) < rows.numel() / 2


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in {"means", "embedder", "effective rank"}])
def test_rows_on_the_cpu_are_searched_on_a_gpu_in_parts_with_the_same_results(monkeypatch, name):
    monkeypatch.setattr(approximate, "_EXACT", 0)
    rows, _ = data_set("overlapping blobs")
    labels, devices = torch.arange(len(rows)) % 9 - 1, []
    expected = FUNCTIONS[name](rows, labels)
    product = backends._inner_product
    monkeypatch.setattr(backends, "_inner_product", lambda *args: devices.append(args[1].device.type) or product(*args))
    with pretended_gpu(monkeypatch, memory=100) as device, backends.search_on(device):
        found = FUNCTIONS[name](rows, labels)
    assert_equal(name, found, expected)
    assert set(devices) == {device.type}


def test_a_device_without_float64_stores_no_rows():
    assert _chunks.storage_device((2, 2), torch.device("mps")).type == "cpu"
    with backends.search_on(torch.device("mps")):
        assert backends.search_device(torch.device("cpu")).type == "cpu"


@pytest.mark.parametrize(("memory", "stored_on"), [(8 * 4 * 48 * 32, "lazy"), (8 * 4 * 48 * 32 - 1, "cpu")])
def test_embeddings_of_a_training_are_stored_on_the_gpu_up_to_an_eighth_of_its_memory(monkeypatch, memory, stored_on):
    images, devices = torch.rand(48, 3, 4, 4), {}

    class Recorder(ClusterPseudoLabeler):
        def label(self, embeddings):
            devices["labeler"] = embeddings.device.type, backends.search_device(embeddings.device).type
            return super().label(embeddings)

    def cluster(embeddings):
        devices["function"] = embeddings.device.type
        return embeddings.numpy()[:, 0] > 0

    with pretended_gpu(monkeypatch, memory=memory) as device:
        model = EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 32)), nn.Linear(32, 32)).to(device)
        for labeler in (Recorder(4), lambda rows: cluster(rows).astype(int)):
            rounds = Rounds(model, images, labeler, clusters_per_batch=2, max_steps=1, label_free=True)
            pseudo_labels = next(iter(rounds)).pseudo_labels
            assert pseudo_labels.centers.device.type == "cpu"
            assert rounds.start_scores is not None
    assert devices == {"labeler": (stored_on, "lazy"), "function": "cpu"}


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
