"""A model to what it makes of images, how that looks without labels, and how far labels can be believed."""

from dataclasses import asdict
from math import isqrt
from statistics import fmean

import torch
from setups import Data
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from udmlss import EmbeddingModel, embed, label_free_scores, metrics
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.types import Images

PROBE = 1000


def see(model: EmbeddingModel, images: Images) -> dict[str, Tensor]:
    """Return features and embeddings of all images, by one pass through the trunk."""
    device = next(model.parameters()).device
    features = embed(model, images, output="features", channels_last=True)
    model.eval()
    with torch.no_grad():
        return {"features": features, "embeddings": model.embed_features(features.to(device)).cpu()}


def see_views(model: EmbeddingModel, data: Data) -> tuple[dict[str, Tensor], Tensor]:
    """Return features and embeddings of augmented views, and the training images they are of.

    All runs of a data set see the same views of the same images.
    """
    probe = torch.randperm(len(data.plain), generator=torch.Generator().manual_seed(0))[:PROBE]
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return see(model, Subset(data.train, probe.tolist())), probe


def judge(images: Tensor, views: Tensor, probe: Tensor, n_clusters: int) -> dict[str, float]:
    """Return label-free measures: those of `fit`'s reports, and consistency, which was tried.

    It is taken in as many clusters as the square root of the number of images, and in as many as training used.
    """
    images, views = functional.normalize(images), functional.normalize(views)
    return asdict(label_free_scores(images, views, probe)) | {
        "consistency": fmean(consistency(images, views, probe, isqrt(len(images)), seed) for seed in range(3)),
        "own_consistency": consistency(images, views, probe, n_clusters, 0),
    }


def consistency(images: Tensor, views: Tensor, probe: Tensor, n_clusters: int, seed: int) -> float:
    """Return the share of views that fall into the cluster of the image they are of."""
    clusters = k_means(images, n_clusters, seed=seed)
    nearest = torch.cdist(views, cluster_means(images, clusters, int(clusters.max()) + 1)).argmin(dim=1)
    return float((nearest == clusters[probe]).float().mean())


def recall_of_halves(rows: Tensor, labels: Tensor) -> list[float]:
    """Return R@1 of every other image, and of the rest, each searched for among all."""
    found = (labels[metrics.nearest(rows, 1)[1][:, 0]] == labels).float()
    return [float(found[first::2].mean()) for first in (0, 1)]
