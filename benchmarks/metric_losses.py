"""The metric losses by name, with the settings of their authors or, where those are for another distance, PML's."""

from collections.abc import Callable
from functools import partial

from pytorch_metric_learning import distances, losses, miners
from torch import nn

LOSSES: dict[str, Callable[[int, int], nn.Module]] = {  # built for n classes, or clusters, and d dimensions
    "multi-similarity": lambda _n, _d: losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
    "contrastive": lambda _n, _d: losses.ContrastiveLoss(1, 0.5, distance=distances.CosineSimilarity()),
    "triplet": lambda _n, _d: losses.TripletMarginLoss(0.2),
    "lifted": lambda _n, _d: losses.LiftedStructureLoss(),
    "n-pairs": lambda _n, _d: losses.NPairsLoss(),
    "nt-xent": lambda _n, _d: losses.NTXentLoss(),
    "sup-con": lambda _n, _d: losses.SupConLoss(),
    "circle": lambda _n, _d: losses.CircleLoss(),
    "margin": lambda _n, _d: losses.MarginLoss(margin=0.2, beta=1.2),
    "fast-ap": lambda _n, _d: losses.FastAPLoss(),
    "proxy-anchor": lambda n, d: losses.ProxyAnchorLoss(n, d, margin=0.1, alpha=32),
    "soft-triple": lambda n, d: losses.SoftTripleLoss(n, d, centers_per_class=2),
}
MINERS: dict[str, Callable[[], miners.BaseMiner]] = {
    "multi-similarity": partial(miners.MultiSimilarityMiner, 0.1),
    "triplet": miners.BatchHardMiner,
    "margin": miners.DistanceWeightedMiner,
}
