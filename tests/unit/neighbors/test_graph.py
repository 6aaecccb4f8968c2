import numpy as np
import torch

from udmlss.neighbors import nearest
from udmlss.neighbors.graph import shared_neighbor_graph


def test_weights_are_the_jaccard_index_of_the_lists_of_neighbors(monkeypatch):
    monkeypatch.setattr("udmlss.neighbors.graph._EDGES", 7)
    _, indices = nearest(torch.randn(40, 5), 6)
    lists = [{i, *row} for i, row in enumerate(indices.tolist())]
    expected = np.zeros((40, 40))
    for i, one in enumerate(lists):
        for j, other in enumerate(lists):
            if i != j and (i in other or j in one):
                expected[i, j] = len(one & other) / len(one | other)
    np.testing.assert_allclose(shared_neighbor_graph(indices).toarray(), expected)
