"""Losses that sample take their random numbers from a seed of their own, or from that of `fit`."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from udmlss import EmbeddingModel
from udmlss.losses import ClusterNCALoss, SelfSupervisedRanking, SynthesisRankingLoss, deep_metric
from udmlss.types import UsesSeed

EMBEDDINGS, LABELS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def synthesis_ranking(seed=None):
    loss = SynthesisRankingLoss(4, seed=seed)
    loss.set_centers(torch.eye(6, 4))
    return loss


LOSSES = {
    "ClusterNCALoss": lambda **seed: ClusterNCALoss(8, **seed),
    "SelfSupervisedRanking": lambda **seed: SelfSupervisedRanking(192, 16, 4, max_images=4, **seed),
    "SynthesisRankingLoss": synthesis_ranking,
    "distance_weighted_margin": deep_metric.distance_weighted_margin,
}
CONTINUING = [name for name in LOSSES if name != "ClusterNCALoss"]  # which samples equally in every call


def make(name, **seed):
    """Return a loss whose weights do not depend on its seed, and the part of it that has the seed."""
    torch.manual_seed(3)
    loss = LOSSES[name](**seed)
    return loss, next(part for part in loss.modules() if isinstance(part, UsesSeed))


def values(loss, n_calls=2):
    model = EmbeddingModel(nn.Flatten(), nn.Identity())
    batch = (model, IMAGES) if isinstance(loss, SelfSupervisedRanking) else (EMBEDDINGS, LABELS)
    return [loss(*batch).item() for _ in range(n_calls)]


@pytest.mark.parametrize("name", LOSSES)
def test_seed_determines_the_samples_and_the_global_state_is_unchanged(name):
    one, same, other = (make(name, seed=seed)[0] for seed in (1, 1, 2))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (miners sample from it)
    assert values(one) == values(same)
    assert values(one) != values(other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    first, second = values(same)
    assert (first != second) == (name in CONTINUING)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("default", [np.int64(2), 2**40 + 1])  # also above the range of scikit-learn
def test_default_seed_is_used_only_without_a_seed(name, default):
    expected = values(make(name, seed=0)[0])
    assert values(make(name)[0]) == expected
    (unseeded, unseeded_part), (seeded, seeded_part) = make(name), make(name, seed=0)
    for part in (unseeded_part, seeded_part):
        part.set_default_seed(default)
    assert unseeded_part.seed is None
    assert values(seeded) == expected
    assert values(unseeded) == values(make(name, seed=int(default))[0]) != expected


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])  # noqa: S301
def test_a_copy_continues_with_the_same_samples(name, duplicate):
    loss, _ = make(name)
    values(loss)
    other = duplicate(loss)
    assert values(loss) == values(other)
