"""Pair losses of Deep_Metric, compared with pytorch-metric-learning; test_deep_metric.py has their definitions."""

import pytest
import torch
from deep_metric_definitions import DEFINITIONS
from deep_metric_losses import LOSSES, overlapping_clusters
from pytorch_metric_learning import distances, losses, miners

from udmlss import UDMLSSLoss
from udmlss.losses import deep_metric


@pytest.mark.parametrize("name", ["multi_similarity", "hard_mining", "lifted_structure(mined=True)"])
def test_a_single_mined_pair_of_each_kind_counts(name):
    degrees, labels = torch.tensor([-30.0, 0, -60, 65, 90], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    embeddings = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    assert [len(index) for index in miners.MultiSimilarityMiner(0.1)(embeddings, labels)] == [1, 1, 1, 1]
    value = LOSSES[name]()(embeddings, labels).item()
    assert value == pytest.approx(DEFINITIONS[name](embeddings, labels), abs=1e-9)
    assert value != 0


def test_nca_with_the_whole_batch_equals_that_of_pytorch_metric_learning():
    embeddings, labels = overlapping_clusters([4, 3, 5])
    expected = losses.NCALoss(softmax_scale=16, distance=distances.CosineSimilarity())(embeddings, labels)
    torch.testing.assert_close(deep_metric.nca(n_nearest=11)(embeddings, labels), expected)


def test_multi_similarity_equals_loss_and_miner_of_pytorch_metric_learning():
    embeddings, labels = overlapping_clusters([4, 4, 4])
    expected = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    assert UDMLSSLoss(deep_metric.multi_similarity())(embeddings, labels) == expected(embeddings, labels)
