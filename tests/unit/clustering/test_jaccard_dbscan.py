import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from udmlss.clustering import JaccardDBSCAN
from udmlss.neighbors import k_reciprocal_similarity, nearest


def test_clusters_are_those_of_dense_distances():
    rows = torch.eye(5, 8)[torch.arange(100) % 5] + 0.3 * torch.randn(100, 8)
    dense = 1 - k_reciprocal_similarity(rows, nearest(rows, 11)[1], k1=12, k2=4).toarray()
    np.fill_diagonal(dense, 0)
    for eps in (0.4, 0.6):
        expected = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit_predict(dense.clip(0))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = JaccardDBSCAN(eps, k1=12, k2=4).fit_predict(rows)
        assert found.tolist() == expected.tolist()
    assert found.max() > 1


def test_equal_rows_share_a_label():
    groups = torch.arange(3).repeat_interleave(torch.tensor([300, 20, 20]))
    rows = torch.eye(3, 6)[groups] + 0.1 * torch.randn(340, 6) * (groups > 0).unsqueeze(1)
    found = JaccardDBSCAN(k1=10, k2=3).fit_predict(rows.numpy())
    assert set(found[:300]) == {0}
    assert 0 not in found[300:]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (torch.ones(40, 4), {}, "Embeddings must differ"),
        (torch.randn(5, 4), {}, "`k1=30` must not exceed the number of rows, got 5"),
        (torch.randn(5, 4), {"k1": 3}, "`k2=6` must not exceed the number of rows, got 5"),
        (torch.full((40, 4), torch.nan), {}, "`X` must be finite"),
        (torch.randn(40, 4), {"eps": 1.0}, "`eps` must be below 1"),
    ],
)
def test_unusable_rows_are_an_error(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        JaccardDBSCAN(**settings).fit_predict(rows)
