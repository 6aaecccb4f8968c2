"""Descriptions of objects by their settings."""

import pytest
import torch
from pytorch_metric_learning import losses, miners
from sklearn.cluster import HDBSCAN
from torch import nn

from udmlss import ClusterPseudoLabeler
from udmlss.training.identity import differences
from udmlss.training.identity.settings import describe


def descriptions(module):
    return {
        key: value for path, part in module.named_modules(prefix="c") for key, value in describe(path, part).items()
    }


PARTS = [
    (losses.MultiSimilarityLoss, {"alpha": 3, "beta": 20, "base": 0.1}),
    (losses.TripletMarginLoss, {"margin": 0.3, "swap": True, "smooth_loss": True, "triplets_per_anchor": 5}),
    (losses.ContrastiveLoss, {"pos_margin": 0.1, "neg_margin": 0.7}),
    (losses.NTXentLoss, {"temperature": 0.3}),
    (losses.MarginLoss, {"margin": 0.3, "nu": 0.1, "beta": 1.0, "triplets_per_anchor": 4}),
    (lambda **settings: losses.ProxyAnchorLoss(6, 8, **settings), {"margin": 0.3, "alpha": 16}),
    (lambda **settings: losses.MultipleLosses([losses.SupConLoss()] * 2, **settings), {"weights": [1, 2]}),
    (lambda **settings: losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, **settings), {"memory_size": 64}),
    (miners.MultiSimilarityMiner, {"epsilon": 0.3}),
    (miners.BatchEasyHardMiner, {"pos_strategy": "hard", "neg_strategy": "hard"}),
]


@pytest.mark.parametrize(("build", "settings"), PARTS)
def test_every_setting_of_a_loss_and_a_miner_is_described(build, settings):
    for name, value in settings.items():
        found = differences(descriptions(build()), descriptions(build(**{name: value})))
        assert [pair[1] for key, pair in found.items() if key == f"c.{name}"] == [pytest.approx(value)]


def test_trained_values_are_not_settings():
    assert "c.bias" not in descriptions(nn.Linear(4, 1))
    assert "c.beta" not in descriptions(losses.MarginLoss(learn_beta=True))


def function(embeddings):
    return embeddings


def test_settings_of_a_clusterer_and_names_of_functions_are_described():
    found = describe("labeler", ClusterPseudoLabeler(HDBSCAN(min_cluster_size=7)))
    assert found["labeler.clusterer"] == "HDBSCAN"
    assert found["labeler.clusterer.min_cluster_size"] == 7
    assert describe("labeler", ClusterPseudoLabeler(function))["labeler.clusterer"] == "function"


class Linked:
    """An object that holds itself."""

    def __init__(self, other=None):
        self.other = self


def test_describes_objects_that_hold_themselves():
    assert describe("a", Linked()) == dict.fromkeys(["a", "a.other", "a.other.other", "a.other.other.other"], "Linked")


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))


def test_a_tensor_with_one_number_is_a_setting():
    assert describe("c", Scaled(2.0)) == {"c": "Scaled", "c.scale": 2.0}
