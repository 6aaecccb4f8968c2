import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn import functional

from udmlss.neighbors import k_reciprocal_similarity, nearest


def similarities_by_hand(rows, k1, k2):
    """Return the k-reciprocal Jaccard similarity, step by step from Zhong et al. (2017) with dense matrices."""
    directions = functional.normalize(rows.double()).numpy()
    n, distances = len(rows), 2 - 2 * directions @ directions.T
    np.fill_diagonal(distances, -1)
    ranks = distances.argsort(axis=1)
    np.fill_diagonal(distances, 0)
    reciprocal = lambda i, k: {j for j in ranks[i, :k] if i in ranks[j, :k]}  # noqa: E731
    weights = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        halves = [reciprocal(j, round(k1 / 2) + 1) for j in own]
        expanded = list(own.union(*(half for half in halves if len(half & own) > 2 / 3 * len(half))))
        weights[i, expanded] = np.exp(-distances[i, expanded]) / np.exp(-distances[i, expanded]).sum()
    weights = np.stack([weights[ranks[i, :k2]].mean(axis=0) for i in range(n)])
    minima = np.minimum(weights[:, None], weights[None]).sum(axis=2)
    return minima / (2 - minima) * (1 - np.eye(n))


@pytest.mark.parametrize(("k1", "k2", "numbers"), [(12, 4, 2**22), (20, 6, 900), (7, 1, 50)])
def test_similarities_are_those_of_dense_matrices(monkeypatch, k1, k2, numbers):
    monkeypatch.setattr("udmlss.neighbors.reciprocal._NUMBERS", numbers)
    rows = torch.randn(80, 4) * 10 ** torch.empty(80, 1).uniform_(-3, 3)
    found = k_reciprocal_similarity(rows, nearest(rows, 22)[1], k1=k1, k2=k2)
    np.testing.assert_allclose(found.toarray(), similarities_by_hand(rows, k1, k2), atol=1e-6)
    assert abs(found - found.T).max() == 0


@pytest.mark.parametrize("setting", ["k1", "k2"])
def test_lists_that_are_too_short_are_an_error(setting):
    rows = torch.randn(9, 3)
    with pytest.raises(ValueError, match=f"`{setting}=6` must not exceed the number of neighbors \\+ 1, got 5"):
        k_reciprocal_similarity(rows, nearest(rows, 4)[1], **{"k1": 3, "k2": 2, setting: 6})


def test_lists_of_other_items_are_an_error(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the signature rejects them as well
    rows = torch.randn(9, 3)
    with pytest.raises(ValueError, match="must have one list per item, got 8 lists of 9 items"):
        k_reciprocal_similarity(rows, nearest(rows[:8], 4)[1], k1=3, k2=2)
