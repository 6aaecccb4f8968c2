import pytest
import torch

from udmlss.clustering import label_margins
from udmlss.neighbors import nearest, shared_neighbor_graph


def test_margins_are_differences_of_mean_similarities():
    graph = shared_neighbor_graph(nearest(torch.randn(60, 3), 8)[1])
    labels = torch.randint(-1, 6, (60,))
    labels[7] = 9  # alone in its cluster
    dense = graph.toarray()
    found = label_margins(graph, labels)
    for i, label in enumerate(labels.tolist()):
        if label == -1:
            assert found[i].isnan()
            continue
        means = {c: dense[i, labels == c].sum() / (labels == c).sum().item() for c in {*labels.tolist()} - {-1, label}}
        own = dense[i, labels == label].sum() / max(1, (labels == label).sum().item() - 1)
        assert found[i].item() == pytest.approx(own - max(means.values()), abs=1e-6)


def test_wrong_labels_have_the_lowest_margins():
    classes = torch.arange(4).repeat_interleave(15)
    rows = torch.eye(4)[classes] + 0.2 * torch.randn(60, 4)
    labels = classes.clone()
    labels[::15] = (labels[::15] + 1) % 4
    margins = label_margins(shared_neighbor_graph(nearest(rows, 8)[1]), labels)
    assert sorted(margins.argsort()[:4].tolist()) == [0, 15, 30, 45]


def test_labels_must_fit_the_graph():
    graph = shared_neighbor_graph(torch.tensor([[1], [0], [1]]))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(3,\)"):
        label_margins(graph, [0, 1])
    assert label_margins(graph, [-1, -2, -1]).isnan().all()
    assert label_margins(graph, [0, 0, 0]).isfinite().all()
