"""A model to what it makes of images, and how that looks without labels."""

from dataclasses import asdict

import torch
from setups import Data
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from udmlss import EmbeddingModel, embed, judge_embeddings
from udmlss.clustering import cluster_means, k_means
from udmlss.types import Images

PROBE = 1000


def see(model: EmbeddingModel, images: Images) -> dict[str, Tensor]:
    """Return features and embeddings of all images, by one pass through the trunk."""
    device = next(model.parameters()).device
    features = embed(model, images, what="features", channels_last=True)
    model.eval()
    with torch.no_grad():
        return {"features": features, "embeddings": model.embed_features(features.to(device)).cpu()}


def judge(model: EmbeddingModel, data: Data, n_clusters: int) -> dict[str, dict[str, float]]:
    """Return label-free measures of the training images' features and embeddings.

    They are those of `fit`'s reports, and `own_consistency`: consistency in as many clusters as training used. All
    runs of a data set see the same augmented views of the same images.
    """
    probe = torch.randperm(len(data.plain), generator=torch.Generator().manual_seed(0))[:PROBE]
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        views = see(model, Subset(data.train, probe.tolist()))
    images = see(model, data.plain)
    return {
        what: _measures(functional.normalize(images[what]), functional.normalize(views[what]), probe, n_clusters)
        for what in images
    }


def _measures(images: Tensor, views: Tensor, probe: Tensor, n_clusters: int) -> dict[str, float]:
    clusters = k_means(images, n_clusters)
    nearest = torch.cdist(views, cluster_means(images, clusters, n_clusters)).argmin(dim=1)
    own = float((nearest == clusters[probe]).float().mean())
    return asdict(judge_embeddings(images, views, probe)) | {"own_consistency": own}
