"""Published settings of the methods that reproduce.py trains; notes name what was not published or differs.

A module of reproduce.py, not a program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import cos, pi
from typing import Any, Literal

from pytorch_metric_learning import losses, miners
from self_paced import SelfPacedLabeler
from torch import nn

from udmlss import ClusterPseudoLabeler, Epochs, UDMLSSLoss, clustering
from udmlss.losses import ClusterMemoryLoss, ClusterNCALoss, NearestPositiveLoss, SynthesisRankingLoss, deep_metric
from udmlss.types import Labeler

Kind = Literal["frozen", "clusters", "labels", "instances", "cbswr", "stml"]
LOSSES: Mapping[str, Callable[[int, int], nn.Module]] = {  # for n clusters and embeddings of dimension d
    "multi-similarity": lambda _n, _d: deep_metric.multi_similarity(positive_scale=2, negative_scale=40, base=0.5),
    "batch-all": lambda _n, _d: deep_metric.batch_all(margin=0.2),
    "binomial-deviance": lambda _n, _d: deep_metric.binomial_deviance(positive_scale=2, negative_scale=40, base=0.5),
    "nca": lambda _n, _d: deep_metric.nca(scale=16, n_nearest=32),
    "nearest-positive": lambda _n, _d: NearestPositiveLoss(margin=0.1),
    "cluster-nca": lambda _n, _d: ClusterNCALoss(32, scale=16, label_weight=0.1),
    "hard-mining": lambda _n, _d: deep_metric.hard_mining(epsilon=0.1),
    "distance-weighted": lambda _n, _d: deep_metric.distance_weighted_margin(margin=0.2, beta=1.2, cutoff=0.5),
    "normalized-softmax": lambda n, d: losses.NormalizedSoftmaxLoss(n, d, temperature=0.05),
    "proxy-anchor": lambda n, d: losses.ProxyAnchorLoss(n, d, margin=0.1, alpha=32),
    "nt-xent": lambda _n, _d: losses.NTXentLoss(temperature=0.1),
    "cluster-memory": lambda _n, d: ClusterMemoryLoss(d, temperature=0.05, momentum=0.1),
    "hybrid-memory": lambda _n, d: ClusterMemoryLoss(d, temperature=0.05, momentum=0.2),
}
SCHEDULES: Mapping[str, Callable[[float], float]] = {  # factor of the learning rates at a fraction of the training
    "constant": lambda _: 1,
    "cosine": lambda fraction: (1 + cos(pi * fraction)) / 2,
    "x 0.1 every third": lambda fraction: 0.1 ** int(3 * fraction),
    "x 0.1 every 2/5": lambda fraction: 0.1 ** int(5 * fraction / 2),
    "x 0.5 every sixth": lambda fraction: 0.5 ** int(6 * fraction),
}


@dataclass(frozen=True)
class Published:
    """The settings of a method; the defaults are those of UDML-SS on CUB without its rotation loss.

    Lengths are numbers of optimizer steps, or `Epochs`. A batch has `batch` images in two views for methods that
    compare two views of each image, and `clusters_per_batch` x `samples_per_cluster` images for the others. k-means has
    `n_clusters`; the other clusterers find the number of clusters from lists of `n_neighbors`. With `neck`, embeddings
    are normalized by `BatchNormNeck`, and are the features themselves if these have `embedding_size` dimensions.
    """

    kind: Kind = "clusters"
    backbone: str = "googlenet"
    pooling: str = "average"
    image_size: int = 227
    crop_scale: tuple[float, float] = (0.16, 1)
    embedding_size: int = 512
    neck: bool = False
    loss: str = "multi-similarity"
    clusterer: str = "k-means"
    n_clusters: int = 100
    n_neighbors: int = 0
    clusters_per_batch: int = 16
    samples_per_cluster: int = 5
    batch: int = 64
    steps: int | Epochs = 3600
    relabel_every: int = 30
    rotation_weight: float = 0
    rotation_images: int = 16
    ranking: bool = False
    synthesis_weight: float = 0
    views: int = 1
    ema_decay: float | None = None
    neighbor_fraction: float = 0
    neighbors: int = 5
    delta: float = 1
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0
    lr: float = 1e-5
    new_lr: float = 1e-5
    proxy_lr: float = 1e-5
    weight_decay: float = 5e-4
    schedule: str = "constant"
    clip_norm: float | None = None
    freeze_batch_norm: bool = True
    note: str = ""


def _dbscan(n_neighbors: int, eps: float = 0.6) -> object:
    return clustering.JaccardDBSCAN(eps=eps, k1=n_neighbors, k2=max(1, n_neighbors // 5), min_samples=4)


LABELERS: Mapping[str, Callable[[int], Labeler]] = {  # for lists of n neighbors
    "communities": lambda n: ClusterPseudoLabeler(clusterer=clustering.Communities(n, min_cluster_size=5)),
    "jaccard-dbscan": lambda n: ClusterPseudoLabeler(clusterer=_dbscan(n)),
    "self-paced": lambda n: SelfPacedLabeler([_dbscan(n, 0.58), _dbscan(n), _dbscan(n, 0.62)]),
}


def build_criterion(
    loss: nn.Module,
    embedding_size: int,
    *,
    miner: miners.BaseMiner | None = None,
    rotation_weight: float,
    synthesis_weight: float = 0,
) -> UDMLSSLoss:
    """Return the criterion, to which `SynthesisRankingLoss` is added if it has a weight."""
    if synthesis_weight:  # without its anchor term, which would reinforce errors of the clusters
        ranking = SynthesisRankingLoss(embedding_size, anchor_weight=0)
        given = None if miner is None else [miner, None]
        loss, miner = losses.MultipleLosses([loss, ranking], miners=given, weights=[1, synthesis_weight]), None
    return UDMLSSLoss(loss, miner=miner, rotation_weight=rotation_weight)


UDML_SS = Published(rotation_weight=0.1)
DEEP_METRIC = Published(
    pooling="maximum",
    note="Published with true labels and BN-Inception, which torchvision lacks. The clusters are those of UDML-SS.",
)
RANKING = Published(
    backbone="resnet50",
    ranking=True,
    note="Published with true labels. Settings of the ranking loss were not found; the others are those of UDML-SS.",
)
SYNTHESIS = Published(
    pooling="average+maximum",
    loss="proxy-anchor",
    clusters_per_batch=30,
    steps=Epochs(60),
    synthesis_weight=0.23,
    optimizer="adamw",
    lr=1e-4,
    new_lr=1e-4,
    proxy_lr=1e-2,
    weight_decay=1e-4,
    schedule="x 0.5 every sixth",
    clip_norm=10,
    note="Published with true labels, BN-Inception, an anchor term and a warm-up epoch. Clusters as in UDML-SS.",
)
CLUSTER_CONTRAST = Published(
    backbone="resnet50",
    image_size=224,
    embedding_size=2048,
    neck=True,
    loss="cluster-memory",
    clusterer="jaccard-dbscan",
    n_neighbors=30,
    samples_per_cluster=16,
    steps=10_000,
    relabel_every=200,
    lr=3.5e-4,
    new_lr=3.5e-4,
    schedule="x 0.1 every 2/5",
    freeze_batch_norm=False,
    note="Published for photographs of persons, with GeM pooling, the last stride of 1 and random erasing.",
)
METHODS: Mapping[str, Published] = {
    "frozen": Published("frozen"),
    "instance": Published(
        "instances",
        crop_scale=(0.79, 0.79),
        embedding_size=128,
        loss="nt-xent",
        steps=Epochs(60),
        neighbor_fraction=0.5,
        optimizer="sgd",
        momentum=0.9,
        lr=1e-3,
        new_lr=1e-3,
        schedule="x 0.1 every third",
        note="The settings of the released code. Second views of neighbors are used on CUB only.",
    ),
    "cbswr": Published(
        "cbswr",
        image_size=224,
        crop_scale=(0.77, 0.77),
        embedding_size=128,
        n_clusters=32,
        steps=Epochs(30),
        neighbor_fraction=0.5,
        optimizer="sgd",
        lr=1e-3,
        new_lr=1e-3,
        weight_decay=0,
        note="The clusters are those of a batch. Second views of neighbors are used on CUB only.",
    ),
    "stml": Published(
        "stml",
        pooling="average+maximum",
        batch=120,
        steps=Epochs(90),
        ema_decay=0.999,
        optimizer="adamw",
        lr=1e-4,
        new_lr=1e-4,
        weight_decay=1e-2,
        schedule="cosine",
        note="Published with AdamP.",
    ),
    "deepcluster": Published(
        embedding_size=128,
        loss="normalized-softmax",
        proxy_lr=1e-3,
        note="Settings for these datasets were not found; they are those of UDML-SS, except `proxy_lr`.",
    ),
    "udml": Published(),
    "udml-ss": UDML_SS,
    "ranking": RANKING,
    "synthesis": SYNTHESIS,
    "udml-ss-ranking": replace(RANKING, rotation_weight=0.1),
    "udml-ss-synthesis": replace(
        UDML_SS,
        synthesis_weight=0.23,
        proxy_lr=1e-3,
        note="The settings of UDML-SS, with the released weight of the ranking loss.",
    ),
    **{
        name: replace(DEEP_METRIC, loss=name)
        for name in ("batch-all", "binomial-deviance", "nca", "nearest-positive", "cluster-nca", "hard-mining")
    },
    "distance-weighted": Published(
        backbone="resnet50",
        embedding_size=128,
        loss="distance-weighted",
        clusters_per_batch=32,
        samples_per_cluster=4,
        steps=Epochs(100),
        new_lr=1e-3,
        weight_decay=1e-4,
        note="Published with true labels, by metriclearningbench. The clusters are those of UDML-SS.",
    ),
    "cluster-contrast": CLUSTER_CONTRAST,
    "cluster-contrast-communities": replace(
        CLUSTER_CONTRAST,
        clusterer="communities",
        n_neighbors=14,
        note=f"{CLUSTER_CONTRAST.note} The graph has weights of shared neighbors instead of cosines.",
    ),
    "spcl": replace(
        CLUSTER_CONTRAST,
        loss="hybrid-memory",
        clusterer="self-paced",
        samples_per_cluster=4,
        steps=20_000,
        relabel_every=400,
        note="Published for photographs of persons, with a row per image in the memory instead of one per cluster.",
    ),
    "recipe": Published(
        views=2,
        clusters_per_batch=8,
        ema_decay=0.95,
        lr=3e-5,
        new_lr=3e-4,
        note="Not published: the recipe of this library, with the number of steps of UDML-SS.",
    ),
    "supervised": Published("labels", note="The settings of UDML-SS with true labels: an upper bound."),
}
_CLUSTER_SETTINGS: Mapping[str, dict[str, Any]] = {
    "cars196": {"steps": 12_000},
    "sop": {"n_clusters": 10_000, "clusters_per_batch": 48, "steps": 62_400, "relabel_every": 1040},
    # Not published: the settings of SOP, scaled by the number of images
    "inshop": {"n_clusters": 4300, "clusters_per_batch": 48, "steps": 26_700, "relabel_every": 445},
}
_GLYPHS: dict[str, Any] = {  # not published: the network of the quickstart, trained from scratch
    "backbone": "small",
    "pooling": "average",
    "image_size": 32,
    "embedding_size": 128,
    "n_clusters": 500,
    "steps": 602,
    "relabel_every": 76,
    "optimizer": "adamw",
    "lr": 1e-3,
    "new_lr": 1e-3,
    "proxy_lr": 1e-2,
    "weight_decay": 0.01,
    "freeze_batch_norm": False,
}


def settings_for(method: str, data: str) -> Published:
    """Return the settings of a method on a dataset; other folders have the settings of CUB."""
    published = METHODS[method]
    if data == "glyphs":
        return replace(published, **_GLYPHS | ({"n_clusters": 32} if published.kind == "cbswr" else {}))
    changes: dict[str, Any] = {} if data in {"cub200", "folder"} else {"neighbor_fraction": 0}
    if published.kind in {"clusters", "labels"} and published.clusterer == "k-means" and data in _CLUSTER_SETTINGS:
        changes |= _CLUSTER_SETTINGS[data]
        if isinstance(published.steps, Epochs):  # the method was published with its own batches and length
            changes |= {"steps": published.steps, "clusters_per_batch": published.clusters_per_batch}
        elif "clusters_per_batch" in changes:
            changes["clusters_per_batch"] //= published.views
    if data in {"sop", "inshop"} and published.kind == "stml":
        changes |= {"ema_decay": 0.9, "delta": 0.9, "neighbors": 2}
    return replace(published, **changes)
