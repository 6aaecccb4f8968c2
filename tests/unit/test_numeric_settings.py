"""Every numeric setting of every public signature is checked where it is given.

The test finds the settings by their annotations, and calls each function with one wrong value at a time. A new public
function with numeric settings needs an entry in `CALLS`, or a reason in `NOT_CHECKED`.
"""

import inspect
import math
import types
import typing
from collections.abc import Sequence

import jaxtyping
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from torch import nn

import udmlss
from udmlss import (
    backbones,
    cli,
    clustering,
    data,
    distributed,
    losses,
    metrics,
    models,
    neighbors,
    report,
    search,
    training,
)
from udmlss.losses import cbswr, deep_metric, ranking, stml
from udmlss.training import callbacks

PLACES = {
    "": udmlss,
    "metrics.": metrics,
    "clustering.": clustering,
    "neighbors.": neighbors,
    "search.": search,
    "models.": models,
    "losses.": losses,
    "cbswr.": cbswr,
    "deep_metric.": deep_metric,
    "ranking.": ranking,
    "stml.": stml,
    "backbones.": backbones,
    "data.": data,
    "distributed.": distributed,
    "report.": report,
    "training.": training,
    "callbacks.": callbacks,
    "cli.": cli,
}

RESULT = "a result, whose numbers the library computes"
PROTOCOL = "`fit` calls it with numbers that were checked"
COUNT = "the number of images, which the library counts"
NOT_CHECKED = {
    "ClusterPseudoLabeler.check_size": COUNT,
    "clustering.Communities.check_size": COUNT,
    "clustering.JaccardDBSCAN.check_size": COUNT,
    "ClusterPseudoLabeler.set_default_seed": PROTOCOL,
    "UDMLSSLoss.check_fits": PROTOCOL,
    "losses.ClusterNCALoss.set_default_seed": PROTOCOL,
    "losses.SelfSupervisedRanking.set_default_seed": PROTOCOL,
    "losses.SynthesisRankingLoss.set_default_seed": PROTOCOL,
    "FitResult": RESULT,
    "ColorComparison": RESULT,
    "LabelFreeScores": RESULT,
    "RoundReport": RESULT,
    "Scores": RESULT,
    "StepReport": RESULT,
    "data.ImageCheck": RESULT,
    "cli.Neighbors": RESULT,
    "cli.TrainedRun": RESULT,
    "metrics.Retrieval": RESULT,
    "neighbors.NeighborLists": RESULT,
}

BELOW_RANGE = {  # a value below the range of a setting whose range includes -1; None for a range without a lower limit
    ("cli.duplicates", "threshold"): -1.5,
    ("backbones.Backbone", "mean"): None,
    ("data.ImageFiles", "value_range"): None,
    ("data.TarImages", "value_range"): None,
    ("data.image_folder", "value_range"): None,
    ("losses.SynthesisRankingLoss", "anchor_margin"): -1.5,
    ("PseudoLabels", "agreement"): -1.5,
    ("search.near_duplicates", "threshold"): -1.5,
    ("losses.SelfSupervisedRanking", "boundary"): -1.5,
    ("losses.SynthesisRankingLoss", "min_similarity"): -1.5,
    ("deep_metric.binomial_deviance", "base"): -1.5,
    ("deep_metric.multi_similarity", "base"): -1.5,
    ("ranking.positive_loss", "boundary"): -1.5,
}

ROWS, LABELS = torch.eye(6), torch.arange(6) // 2
IMAGES = torch.rand(6, 3, 4, 4)


class Unused(nn.Module):
    """A model that must not be called, because a wrong setting is an error before any work."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 4)

    def forward(self, images):
        raise AssertionError


def model():
    return udmlss.EmbeddingModel(Unused(), nn.Linear(4, 4))


def parts():
    return {
        "model": model(),
        "images": IMAGES,
        "labeler": udmlss.ClusterPseudoLabeler(3),
        "clusters_per_batch": 2,
        "samples_per_cluster": 2,
    }


def retrieval(function):
    return lambda **changes: function(**{"embeddings": ROWS, "labels": LABELS} | changes)


def sampler(**changes):
    return udmlss.PseudoLabelSampler(**{"labels": LABELS, "clusters_per_batch": 2, "samples_per_cluster": 2} | changes)


def padded(changes):
    """Return sequences of one wrong number with as many further numbers as the setting needs."""
    lengths = {"value_range": 2, "background": 3, "map_shape": 3, "image_shape": 3, "mean": 3, "std": 3}
    return {
        name: (*value, *range(4, 3 + lengths[name])) if name in lengths else value for name, value in changes.items()
    }


CALLS = {
    "Checkpoint": lambda **changes: udmlss.Checkpoint("never-written", **changes),
    "ClusterPseudoLabeler": lambda **changes: udmlss.ClusterPseudoLabeler(**{"n_clusters": 3} | changes),
    "EarlyStopping": udmlss.EarlyStopping,
    "EmbeddingModel.from_trunk": lambda **changes: udmlss.EmbeddingModel.from_trunk(Unused(), IMAGES, **changes),
    "Epochs": lambda **changes: udmlss.Epochs(**{"count": 1} | changes),
    "Epochs.in_steps": lambda **changes: udmlss.Epochs(1).in_steps(**{"n_images": 9, "batch_size": 3} | changes),
    "MLflowLogger": udmlss.MLflowLogger,
    "PseudoLabelSampler": sampler,
    "PseudoLabelSampler.set_epoch": lambda epoch: sampler().set_epoch(epoch),
    "PseudoLabels": lambda **changes: udmlss.PseudoLabels(LABELS, None, LABELS.bincount(), **changes),
    "RotationPretextHead": lambda **changes: udmlss.RotationPretextHead(**{"in_features": 4} | changes),
    "Rounds": lambda **changes: udmlss.Rounds(**parts() | changes),
    "TensorBoardLogger": lambda **changes: udmlss.TensorBoardLogger("never-written", **changes),
    "UDMLSSLoss": lambda **changes: udmlss.UDMLSSLoss(pml_losses.MultiSimilarityLoss(), **changes),
    "WandbLogger": udmlss.WandbLogger,
    "WeightAverage": udmlss.WeightAverage,
    "compare_colors": lambda **changes: udmlss.compare_colors(
        backbones.Backbone("own", nn.Flatten(), 8, (0.5,) * 3, (0.5,) * 3), torch.rand(3, 3, 8, 8), **changes
    ),
    "embed": lambda **changes: udmlss.embed(model(), IMAGES, **changes),
    "embedder_from_features": lambda **changes: udmlss.embedder_from_features(ROWS, **{"embedding_size": 4} | changes),
    "evaluate": lambda **changes: udmlss.evaluate(model(), IMAGES, LABELS, **{"ks": 1} | changes),
    "evaluate_embeddings": lambda **changes: udmlss.evaluate_embeddings(ROWS, LABELS, **{"ks": 1} | changes),
    "fit": lambda **changes: udmlss.fit(**parts() | {"criterion": pml_losses.MultiSimilarityLoss()} | changes),
    "pair_with_neighbors": lambda **changes: udmlss.pair_with_neighbors(ROWS, **changes),
    "parameter_groups": lambda **changes: udmlss.parameter_groups(model(), nn.Identity(), **changes),
    "metrics.nearest": lambda **changes: metrics.nearest(ROWS, **changes),
    "metrics.recall_at_k": retrieval(metrics.recall_at_k),
    "metrics.score_rankings": lambda **settings: metrics.score_rankings(torch.tensor([[1], [0]]), [0, 0], **settings),
    "metrics.retrieval": retrieval(metrics.retrieval),
    "models.BatchNormNeck": models.BatchNormNeck,
    "models.PCAEmbedder": lambda **changes: models.PCAEmbedder(**{"in_features": 8, "out_features": 4} | changes),
    "clustering.Communities": clustering.Communities,
    "clustering.JaccardDBSCAN": clustering.JaccardDBSCAN,
    "clustering.cluster_means": lambda **changes: clustering.cluster_means(ROWS, LABELS, **changes),
    "clustering.k_means": lambda **changes: clustering.k_means(ROWS, **{"n_clusters": 3} | changes),
    "neighbors.average_with_neighbors": lambda **changes: neighbors.average_with_neighbors(ROWS, **changes),
    "neighbors.k_reciprocal_similarity": lambda **changes: neighbors.k_reciprocal_similarity(
        ROWS, (torch.arange(6).unsqueeze(1) + torch.arange(1, 6)) % 6, **{"k1": 2, "k2": 2} | changes
    ),
    "neighbors.neighbor_lists": lambda **changes: neighbors.neighbor_lists(ROWS, **{"k": 2} | changes),
    "search.SearchIndex": lambda **changes: search.SearchIndex(ROWS, **changes),
    "search.SearchIndex.search": lambda **changes: search.SearchIndex(ROWS).search(ROWS, **{"k": 2} | changes),
    "search.SearchIndex.search_images": lambda **changes: search.SearchIndex(ROWS).search_images(
        Unused(), IMAGES, **changes
    ),
    "search.near_duplicates": lambda **changes: search.near_duplicates(ROWS, **changes),
    "losses.CBSwRLoss": lambda **changes: losses.CBSwRLoss(
        losses.ClusteringHead(4, 3), losses.Decoder((4, 1, 1), (3, 4, 4)), **changes
    ),
    "losses.CenterSoftmaxLoss": losses.CenterSoftmaxLoss,
    "losses.ClusterMemoryLoss": lambda **changes: losses.ClusterMemoryLoss(**{"embedding_size": 4} | changes),
    "losses.ClusterNCALoss": losses.ClusterNCALoss,
    "losses.ClusteringHead": lambda **changes: losses.ClusteringHead(**{"embedding_size": 4} | changes),
    "losses.Decoder": lambda **changes: losses.Decoder(
        **{"map_shape": (4, 1, 1), "image_shape": (3, 4, 4)} | padded(changes)
    ),
    "losses.InformationLoss": losses.InformationLoss,
    "losses.NearestPositiveLoss": losses.NearestPositiveLoss,
    "losses.STMLLoss": losses.STMLLoss,
    "losses.SelfSupervisedRanking": lambda **changes: losses.SelfSupervisedRanking(**{"in_features": 4} | changes),
    "losses.SynthesisRankingLoss": lambda **changes: losses.SynthesisRankingLoss(**{"embedding_size": 4} | changes),
    **{f"deep_metric.{name}": getattr(deep_metric, name) for name in deep_metric.__all__ if name.islower()},
    "ranking.distort": lambda strengths: ranking.distort(IMAGES, strengths, torch.Generator()),
    "ranking.positive_loss": lambda **changes: ranking.positive_loss(
        **{"similarities": ROWS, "boundary": 0.5, "scale": 32} | changes
    ),
    "ranking.rank_loss": lambda **changes: ranking.rank_loss(
        torch.rand(6, 3), **{"margin": 0.1, "scale": 32} | changes
    ),
    "stml.relaxed_contrastive_loss": lambda **changes: stml.relaxed_contrastive_loss(ROWS, torch.eye(6), **changes),
    "stml.teacher_similarity": lambda **changes: stml.teacher_similarity(
        ROWS, torch.arange(6), **{"sigma": 3.0, "neighbors": 2} | changes
    ),
    "backbones.Backbone": lambda **changes: backbones.Backbone(
        **{"name": "own", "trunk": Unused(), "image_size": 4, "mean": (0, 0, 0), "std": (1, 1, 1)} | padded(changes)
    ),
    "backbones.RotatedImage": backbones.RotatedImage,
    "backbones.load_backbone": backbones.load_backbone,
    "data.TarImages": lambda **changes: data.TarImages(["a.tar"], **padded(changes)),
    "data.check_images": lambda **changes: data.check_images(["a.png"], **changes),
    "data.ImageFiles": lambda **changes: data.ImageFiles(["a.png"], [0], ["a"], **padded(changes)),
    "data.image_folder": lambda **changes: data.image_folder("no-folder", **padded(changes)),
    "data.split_classes": lambda **changes: data.split_classes(LABELS, **changes),
    "cli.check": lambda **changes: cli.check("no-folder", **changes),
    "cli.duplicates": lambda **changes: cli.duplicates("no-folder", **changes),
    "cli.embed": lambda **changes: cli.embed("no-folder", "no-folder", out="never-written", **changes),
    "cli.search": lambda **changes: cli.search("no-folder", "no-file", **changes),
    "cli.train": lambda **changes: cli.train("no-folder", out="never-written", **changes),
    "distributed.gather_shards": lambda **changes: distributed.gather_shards(ROWS, **changes),
    "distributed.shard": distributed.shard,
    "report.contact_sheet": lambda **changes: report.contact_sheet(IMAGES, [0], **changes),
    "report.plot_map": lambda **changes: report.plot_map(ROWS, **changes),
    "report.plot_neighbors": lambda **changes: report.plot_neighbors(IMAGES, ROWS, [0], **changes),
    "report.write_report": lambda **changes: report.write_report(
        "never-written", IMAGES, ROWS, udmlss.PseudoLabels.from_labels(LABELS), **changes
    ),
}


def callables():
    """Return the public functions, classes and methods by name, each once."""
    found = {}
    for place, module in PLACES.items():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if callable(value) and value not in found.values():
                found[place + name] = value
    methods = {
        f"{owner}.{name}": value
        for owner, cls in found.items()
        if inspect.isclass(cls)
        for name in vars(cls)
        if not name.startswith("_") and inspect.isroutine(value := getattr(cls, name))
    }
    return found | methods


def numeric_settings(function):
    """Return the kind, int or float, of each parameter that takes a number or a sequence of numbers."""
    settings = {}
    for name, parameter in inspect.signature(function).parameters.items():
        members = flattened(parameter.annotation)
        if any("jaxtyping" in str(member) for member in members):
            continue  # a tensor or labels
        sequences = [member for member in members if typing.get_origin(member) in {Sequence, tuple}]
        elements = [element for member in sequences for element in typing.get_args(member)]
        for kind in (int, float):
            if kind in members:
                settings[name] = kind, False
            elif kind in elements:
                settings[name] = kind, True
    return settings


def flattened(annotation):
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [member for each in typing.get_args(annotation) for member in flattened(each)]
    return [annotation]


SETTINGS = {
    (name, setting): kind
    for name, function in callables().items()
    if name not in NOT_CHECKED
    for setting, kind in numeric_settings(function).items()
}


def test_the_settings_of_all_public_functions_are_found():
    assert len(SETTINGS) > 100
    assert {name for name, _ in SETTINGS} == CALLS.keys()
    assert NOT_CHECKED.keys() <= callables().keys()
    assert BELOW_RANGE.keys() <= SETTINGS.keys()


@pytest.mark.parametrize("name", sorted({name for name, _ in SETTINGS}))
def test_wrong_numbers_are_errors_that_name_the_setting_before_any_work(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types of the signatures reject some before
    for (owner, setting), (kind, is_sequence) in SETTINGS.items():
        if owner != name:
            continue
        below = BELOW_RANGE.get((name, setting), -1)
        wrong = [math.nan, math.inf, -math.inf, True, "1", *([] if below is None else [below])]
        for value in [*wrong, 0.5] if kind is int else wrong:
            with pytest.raises((ValueError, TypeError), match=f"`{setting}") as caught:
                CALLS[name](**{setting: (value,) if is_sequence else value})
            assert ", got " in str(caught.value), (setting, value)
