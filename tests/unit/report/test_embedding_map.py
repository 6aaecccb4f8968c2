"""The map and its tiles."""

import numpy as np
import pytest
import torch

from udmlss.report import embedding_map as module
from udmlss.report.embedding_map import EmbeddingMap, embedding_map, tiles


def test_images_of_one_cluster_are_neighbors_on_the_map(run):
    found = embedding_map(run.embeddings, seed=0)
    distances = np.square(found.points[:, None] - found.points[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    labels = run.pseudo_labels.labels.numpy()
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.9
    assert found.points.min() == 0
    assert found.points.max() == 1
    np.testing.assert_array_equal(found.points, embedding_map(run.embeddings, seed=0).points)


@pytest.mark.parametrize(
    "embeddings", [torch.ones(1, 3), torch.ones(20, 3), torch.arange(1.0, 4).unsqueeze(1), torch.eye(3), torch.eye(6)]
)
def test_few_or_equal_embeddings_have_a_map(embeddings):
    found = embedding_map(embeddings, seed=0)
    assert np.isfinite(found.points).all()
    assert sum(tile.count for tile in tiles(found, 4, 3)) == len(embeddings)


def test_a_large_set_is_sampled(monkeypatch):
    monkeypatch.setattr(module, "_MAPPED", 10)
    found = embedding_map(torch.randn(40, 4), seed=0)
    assert len(set(found.rows.tolist())) == len(found.points) == 10


def test_a_tile_shows_the_image_nearest_to_its_middle():
    points = np.array([[0.0, 0.0], [0.2, 0.8], [0.26, 0.74], [1.0, 1.0], [0.9, 0.1]])
    found = tiles(EmbeddingMap(np.array([10, 11, 12, 13, 14]), points), n_columns=2, n_lines=2)
    assert [(tile.column, tile.line, tile.row, tile.count) for tile in found] == [
        (0, 0, 12, 2),
        (1, 0, 13, 1),
        (0, 1, 10, 1),
        (1, 1, 14, 1),
    ]
