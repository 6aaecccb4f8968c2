"""CBSwR: clusters, centroids and second views in one loss, end to end and without k-means."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from udmlss._checks import check_number, value_error
from udmlss.losses.cbswr.center_softmax import CenterSoftmaxLoss
from udmlss.losses.cbswr.clustering_head import ClusteringHead, InformationLoss
from udmlss.losses.cbswr.decoder import centroid_maps, reconstruction_loss


@dataclass(frozen=True, eq=False)
class CBSwRTerms:
    """The scalar loss and its parts, unweighted; without a decoder `reconstruction` is zero."""

    total: Float[Tensor, ""]
    metric: Float[Tensor, ""]
    information: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]


class CBSwRLoss(nn.Module):
    r"""Center-based softmax with reconstruction: the clusters are learnt by gradient, inside the batch.

    $$L = \alpha \, L_{metric} + \beta \, L_{information} + \gamma \, L_{reconstruction}$$

    The head assigns each image to its most likely of K clusters, with its dropout while it trains. A cluster's centroid
    is the mean feature map of its images in the batch. Embedded like an image's map, it is a negative for the images
    of all other clusters (`CenterSoftmaxLoss`); decoded, it shall be every image of its own (`reconstruction_loss`).
    `InformationLoss` keeps the clusters of like size and each image in one. The positive is the second view.

    The maps are those that the model's trunk pools, so build the trunk of two parts, as below. A loop needs no labeler
    and no sampler, and `fit` does not run it.

    As published: batches of 64 images, two views of each; K = 32 in the text and 100 in the released training; SGD with
    learning rate 1e-3; temperature 0.1; weights 0.9, 0.3 and 0.001. Head and decoder are for training only; their
    parameters are the criterion's, so build the optimiser on `[*model.parameters(), *criterion.parameters()]`. Its
    weight decay is the l2 term of the clustering loss.

    Args:
        head: Embeddings to logits of K clusters.
        decoder: Maps (k f y x) to images (k c h w), such as `Decoder((1024, 7, 7), (3, 224, 224))`; None for
            center-based softmax without reconstruction.
        metric_loss: The loss on embeddings and centroids. None: `CenterSoftmaxLoss()`.
        metric_weight: Weight alpha.
        information_weight: Weight beta.
        reconstruction_weight: Weight gamma. Errors are averaged over pixels, so the default adds little to the loss.

    Raises:
        ValueError: A weight is negative.

    Example:
        >>> from udmlss.losses import CBSwRLoss, ClusteringHead, Decoder
        >>> maps, pool = nn.Conv2d(3, 16, 4, stride=4), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = EmbeddingModel(nn.Sequential(maps, pool), nn.Linear(16, 8))
        >>> criterion = CBSwRLoss(ClusteringHead(8, 4), Decoder((16, 8, 8), (3, 32, 32)))
        >>> views, second_views = torch.randn(2, 10, 3, 32, 32)
        >>> criterion(maps(views), model(second_views), views, lambda found: model.embed_features(pool(found))).shape
        torch.Size([])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091. Each part tells how it differs from the paper and its code.
    """

    def __init__(
        self,
        head: ClusteringHead,
        decoder: nn.Module | None,
        *,
        metric_loss: CenterSoftmaxLoss | None = None,
        metric_weight: float = 0.9,
        information_weight: float = 0.3,
        reconstruction_weight: float = 0.001,
    ) -> None:
        super().__init__()
        check_number("metric_weight", metric_weight, 0)
        check_number("information_weight", information_weight, 0)
        check_number("reconstruction_weight", reconstruction_weight, 0)
        self.head = head
        self.decoder = decoder
        self.metric_loss = CenterSoftmaxLoss() if metric_loss is None else metric_loss
        self.information_loss = InformationLoss()
        self.metric_weight = metric_weight
        self.information_weight = information_weight
        self.reconstruction_weight = reconstruction_weight

    def forward(
        self,
        maps: Float[Tensor, "b f y x"],
        second_embeddings: Float[Tensor, "b d"],
        images: Float[Tensor, "b c h w"],
        embed_maps: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, ""]:
        """Return the total loss; see `terms` for its parts.

        Args:
            maps: Feature maps of the first views.
            second_embeddings: Embeddings of the second views. No gradient goes there, so that they can be made under
                `torch.no_grad()`.
            images: The first views as the network sees them, for the decoder.
            embed_maps: Maps to embeddings as the model embeds them: its pooling and its embedder.

        Raises:
            ValueError: There are fewer images than the head has clusters, or shapes do not fit.
        """
        return self.terms(maps, second_embeddings, images, embed_maps).total

    def terms(
        self,
        maps: Float[Tensor, "b f y x"],
        second_embeddings: Float[Tensor, "b d"],
        images: Float[Tensor, "b c h w"],
        embed_maps: Callable[[Tensor], Tensor],
    ) -> CBSwRTerms:
        """Return the total loss and its parts; arguments as in `forward`."""
        _check_fits(len(maps), self.head.n_clusters)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        embeddings = embed_maps(maps)
        logits = self.head(embeddings)
        clusters = logits.argmax(dim=1).unique(return_inverse=True)[1]  # of those that have an image
        centroids = centroid_maps(maps, clusters)
        with torch.no_grad():  # beside the images, for an embedder with batch norm: there may be one centroid alone
            centers = embed_maps(torch.cat([maps, centroids]))[len(maps) :]
        metric = self.metric_loss(embeddings, second_embeddings, clusters, centers)
        information = self.information_loss(logits)
        reconstruction = metric.new_zeros(())
        if self.decoder is not None:
            reconstruction = reconstruction_loss(self.decoder(centroids), images, clusters)
        total = (
            self.metric_weight * metric
            + self.information_weight * information
            + self.reconstruction_weight * reconstruction
        )
        return CBSwRTerms(total, metric, information, reconstruction)


def _check_fits(n_images: int, n_clusters: int) -> None:
    if n_clusters > n_images:
        raise value_error(
            f"{n_clusters} in-batch clusters need at least as many images in a batch",
            n_images,
            "Draw larger batches, drop the last one if it is smaller, or build the head for fewer clusters",
        )
