"""The limits of the numeric settings of all losses."""

from functools import partial

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss

from udmlss import UDMLSSLoss, losses
from udmlss.losses import deep_metric, ranking, stml

# A rule, and a value that breaks it
ABOVE_0, AT_LEAST_0, SEED = ("above 0", 0), ("at least 0", -1e-9), ("at least 0", -1)
AT_LEAST_1, AT_LEAST_2 = ("at least 1", 0), ("at least 2", 1)
COSINE, PROBABILITY = (r"in -1\.\.1", 1.01), (r"in 0\.\.1", 1.01)
SCALES = {"positive_scale": ABOVE_0, "negative_scale": ABOVE_0}
CBSWR = partial(losses.CBSwRLoss, losses.ClusteringHead(4), None)
ROWS = torch.eye(2)

LIMITS = {
    partial(UDMLSSLoss, MultiSimilarityLoss()): {"rotation_weight": AT_LEAST_0},
    CBSWR: dict.fromkeys(("metric_weight", "information_weight", "reconstruction_weight"), AT_LEAST_0),
    losses.CenterSoftmaxLoss: {"temperature": ABOVE_0, "negative_weight": AT_LEAST_0},
    losses.InformationLoss: {"weight": AT_LEAST_0},
    partial(losses.ClusteringHead, embedding_size=4): {
        "embedding_size": AT_LEAST_1,
        "n_clusters": AT_LEAST_2,
        "dropout": PROBABILITY,
    },
    deep_metric.contrastive: {"threshold": AT_LEAST_0},
    deep_metric.binomial_deviance: SCALES | {"base": COSINE},
    deep_metric.lifted_structure: SCALES,
    deep_metric.multi_similarity: SCALES | {"base": COSINE, "epsilon": AT_LEAST_0},
    deep_metric.hard_mining: {"epsilon": AT_LEAST_0},
    deep_metric.nca: {"scale": ABOVE_0, "n_nearest": AT_LEAST_1},
    deep_metric.batch_all: {"margin": AT_LEAST_0},
    deep_metric.batch_hard: {"margin": AT_LEAST_0},
    deep_metric.distance_weighted_margin: {"margin": AT_LEAST_0, "beta": ABOVE_0, "cutoff": ABOVE_0, "seed": SEED},
    losses.NearestPositiveLoss: {"margin": AT_LEAST_0},
    losses.ClusterNCALoss: {"n_clusters": AT_LEAST_1, "scale": ABOVE_0, "label_weight": AT_LEAST_0, "seed": SEED},
    partial(losses.SelfSupervisedRanking, in_features=4): {
        **dict.fromkeys(("in_features", "hidden", "out_features", "max_images"), AT_LEAST_1),
        **dict.fromkeys(("margin", "positive_weight", "weight"), AT_LEAST_0),
        "boundary": COSINE,
        "scale": ABOVE_0,
        "probability": PROBABILITY,
        "seed": SEED,
    },
    partial(losses.SynthesisRankingLoss, embedding_size=4): {
        "embedding_size": AT_LEAST_1,
        **dict.fromkeys(("radius", "scale", "anchor_scale"), ABOVE_0),
        **dict.fromkeys(("margin", "ranking_weight", "anchor_weight"), AT_LEAST_0),
        "n_synthetic": AT_LEAST_2,
        "min_similarity": COSINE,
        "anchor_margin": COSINE,
        "seed": SEED,
    },
    partial(ranking.rank_loss, ROWS, margin=0.1, scale=8): {"margin": AT_LEAST_0, "scale": ABOVE_0},
    partial(ranking.positive_loss, ROWS, boundary=0, scale=8): {"boundary": COSINE, "scale": ABOVE_0},
    losses.STMLLoss: {"sigma": ABOVE_0, "delta": ABOVE_0, "neighbors": AT_LEAST_1},
    partial(stml.teacher_similarity, ROWS, [0, 1], sigma=1, neighbors=1): {"sigma": ABOVE_0, "neighbors": AT_LEAST_1},
    partial(stml.relaxed_contrastive_loss, ROWS, ROWS): {"delta": ABOVE_0},
}


@pytest.mark.parametrize(("settings", "largest"), [({"cutoff": 2}, "1.4"), ({"beta": 0.4, "margin": 0.1}, "0.5")])
def test_rejects_a_cutoff_beyond_which_no_negative_is_sampled(settings, largest):
    with pytest.raises(ValueError, match=rf"`cutoff` must be below {largest}: no negative is sampled"):
        deep_metric.distance_weighted_margin(**settings)


@pytest.mark.parametrize("build", LIMITS, ids=lambda build: getattr(build, "func", build).__name__)
def test_rejects_a_setting_outside_of_its_range(build):
    for name, (rule, value) in LIMITS[build].items():
        with pytest.raises(ValueError, match=rf"^`{name}` must (be|lie) {rule}, got {value}\."):
            build(**{name: value})
