"""Metric losses by name, with the published settings or, if those are for another distance, the defaults of PML.

PML is pytorch-metric-learning. `LOSSES` has its losses, which sweep.py compares. `OTHERS` has the losses of Deep_Metric
that PML lacks, a classifier, and a memory of clusters.
"""

from collections.abc import Callable
from functools import partial

from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn

from udmlss.losses import ClusterMemoryLoss, ClusterNCALoss, NearestPositiveLoss, deep_metric


class ScaledEmbeddings(nn.Module):
    """A loss of embeddings that are scaled from unit length to another length.

    Lifted structure and n-pairs were published for embeddings of any length. At unit length their softmax has a
    temperature of 1, so that all negatives have almost the same weight. At length 4, n-pairs has the temperature of
    NT-Xent, 1 / 16.
    """

    def __init__(self, loss: nn.Module, length: float = 4) -> None:
        super().__init__()
        self.loss, self.length = loss, length

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.length * embeddings, labels)


LOSSES: dict[str, Callable[[int, int], nn.Module]] = {  # for n clusters or classes, and embeddings of dimension d
    "multi-similarity": lambda _n, _d: losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
    "contrastive": lambda _n, _d: losses.ContrastiveLoss(1, 0.5, distance=distances.CosineSimilarity()),
    "triplet": lambda _n, _d: losses.TripletMarginLoss(0.2),
    "lifted": lambda _n, _d: ScaledEmbeddings(
        losses.LiftedStructureLoss(distance=distances.LpDistance(normalize_embeddings=False))
    ),
    "n-pairs": lambda _n, _d: ScaledEmbeddings(
        losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    ),
    "nt-xent": lambda _n, _d: losses.NTXentLoss(),
    "sup-con": lambda _n, _d: losses.SupConLoss(),
    "circle": lambda _n, _d: losses.CircleLoss(),
    "margin": lambda _n, _d: losses.MarginLoss(margin=0.2, beta=1.2),
    "fast-ap": lambda _n, _d: losses.FastAPLoss(),
    "proxy-anchor": lambda n, d: losses.ProxyAnchorLoss(n, d, margin=0.1, alpha=32),
    "soft-triple": lambda n, d: losses.SoftTripleLoss(n, d, centers_per_class=2),
}
OTHERS: dict[str, Callable[[int, int], nn.Module]] = {
    "batch-all": lambda _n, _d: deep_metric.batch_all(),
    "binomial-deviance": lambda _n, _d: deep_metric.binomial_deviance(),
    "nca": lambda _n, _d: deep_metric.nca(),
    "nearest-positive": lambda _n, _d: NearestPositiveLoss(),
    "cluster-nca": lambda _n, _d: ClusterNCALoss(),
    "hard-mining": lambda _n, _d: deep_metric.hard_mining(),
    "distance-weighted": lambda _n, _d: deep_metric.distance_weighted_margin(),
    "normalized-softmax": losses.NormalizedSoftmaxLoss,
    "cluster-memory": lambda _n, d: ClusterMemoryLoss(d),
}
MINERS: dict[str, Callable[[], miners.BaseMiner]] = {
    "multi-similarity": partial(miners.MultiSimilarityMiner, 0.1),
    "triplet": miners.BatchHardMiner,
    "margin": miners.DistanceWeightedMiner,
}


def build_loss(name: str, n_clusters: int, embedding_size: int) -> tuple[nn.Module, miners.BaseMiner | None]:
    """Return a loss and its miner, or None if it needs no miner."""
    return (LOSSES | OTHERS)[name](n_clusters, embedding_size), MINERS[name]() if name in MINERS else None
