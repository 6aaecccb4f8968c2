import re

import jaxtyping
import numpy as np
import pytest
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


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([[1], [0]], TypeError, "`indices` must be a tensor (q, k) of integers, got list."),
        (torch.ones(2, 1), TypeError, "`indices` must be a tensor (q, k) of integers, got torch.float32."),
        (torch.tensor([1, 0]), ValueError, "`indices` must be a non-empty 2-D tensor, got shape (2,)."),
        (torch.tensor([[1], [2]]), ValueError, "Positions in `indices` must be from 0 to 1, got 1 to 2."),
        (torch.tensor([[1], [-1]]), ValueError, "Positions in `indices` must be from 0 to 1, got -1 to 1."),
        (
            torch.tensor([[1, 1], [0, 2], [0, 1]]),
            ValueError,
            "A list must have each item at most once, got an item twice",
        ),
        (torch.tensor([[1], [1]]), ValueError, "must not include the item itself, got item 1 in its own list."),
    ],
)
def test_lists_that_are_not_neighbors_of_the_items_are_refused(indices, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the signature rejects some as well
    with pytest.raises(error, match=re.escape(message)):
        shared_neighbor_graph(indices)
