"""CBSwR: clusters, cluster centers and second views in one loss, without k-means."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from udmlss._checks import check_number, value_error
from udmlss._torch import at_least_float32
from udmlss.losses.cbswr.center_softmax import CenterSoftmaxLoss
from udmlss.losses.cbswr.clustering_head import ClusteringHead, InformationLoss
from udmlss.losses.cbswr.decoder import center_maps, reconstruction_loss


@dataclass(frozen=True, eq=False)
class CBSwRTerms:
    """The scalar loss and its unweighted terms; `reconstruction` is zero without a decoder."""

    total: Float[Tensor, ""]
    metric: Float[Tensor, ""]
    information: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]


class CBSwRLoss(nn.Module):
    r"""Center-based softmax with reconstruction, which learns clusters by gradient inside each batch.

    $$L = \alpha \, L_{metric} + \beta \, L_{information} + \gamma \, L_{reconstruction}$$

    The head assigns each image to its most likely of K clusters, with dropout in training mode. The center of a cluster
    is the mean feature map of its images in the batch. The embedding of this map is a negative for the images of all
    other clusters (`CenterSoftmaxLoss`), and the decoder reconstructs the images of the cluster from it
    (`reconstruction_loss`). `InformationLoss` makes the clusters balanced and the assignments confident. The positive
    of each image is its second view.

    The feature maps are the input of the trunk's pooling, so the trunk must be built of two parts, as in the example.
    The loss needs a training loop of its own; it does not use a labeler or a sampler, and `fit` does not support it.

    The published settings are batches of 64 images with two views each, K = 32 in the paper and 100 in the released
    training, SGD with a learning rate of 1e-3, a temperature of 0.1, and weights of 0.9, 0.3 and 0.001. The head and
    the decoder are used only in training. Their parameters belong to the criterion, so pass
    `[*model.parameters(), *criterion.parameters()]` to the optimizer, whose weight decay is the l2 term of the loss.

    Args:
        head: Head that maps embeddings to the logits of K clusters.
        decoder: Module that maps feature maps (k, f, y, x) to images (k, c, h, w), such as
            `Decoder((1024, 7, 7), (3, 224, 224))`. None omits the reconstruction loss.
        metric_loss: Loss of embeddings and centers. None uses `CenterSoftmaxLoss()`.
        metric_weight: Weight alpha, at least 0.
        information_weight: Weight beta, at least 0.
        reconstruction_weight: Weight gamma, at least 0. Errors are averaged over pixels, so the contribution is small
            with the default.

    Raises:
        ValueError: A weight is negative.

    Example:
        >>> from udmlss.losses import CBSwRLoss, ClusteringHead, Decoder
        >>> maps, pool = nn.Conv2d(3, 16, 4, stride=4), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = EmbeddingModel(nn.Sequential(maps, pool), nn.Linear(16, 8))
        >>> criterion = CBSwRLoss(ClusteringHead(8, 4), Decoder((16, 8, 8), (3, 32, 32)))
        >>> views, second_views = torch.randn(2, 10, 3, 32, 32)
        >>> criterion(maps(views), model(second_views), views, lambda maps: model.embed_features(pool(maps))).shape
        torch.Size([])

    References:
        Deep Metric Learning Meets Deep Clustering: An Novel Unsupervised Approach for Feature Embedding. Nguyen et al.
        2020. https://arxiv.org/abs/2009.04091. The documentation of each part describes its differences from the paper
        and the released code. In the released code both views of an image are anchors and form centers; here only the
        first views do. The released code embeds the centers in evaluation mode; here `embed_maps` runs in the mode of
        the model, so that batch normalization and dropout in the embedder apply to the centers, too.
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
        self.head, self.decoder = head, decoder
        self.metric_loss = CenterSoftmaxLoss() if metric_loss is None else metric_loss
        self.information_loss = InformationLoss()
        self.metric_weight, self.information_weight = float(metric_weight), float(information_weight)
        self.reconstruction_weight = float(reconstruction_weight)

    def forward(
        self,
        maps: Float[Tensor, "b f y x"],
        second_embeddings: Float[Tensor, "b d"],
        images: Float[Tensor, "b c h w"],
        embed_maps: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, ""]:
        """Compute the scalar loss; `terms` also returns its parts.

        Args:
            maps: Feature maps (b, f, y, x) of the first views.
            second_embeddings: Embeddings (b, d) of the second views. They receive no gradient, so they can be computed
                under `torch.no_grad()`.
            images: First views (b, c, h, w) as the model receives them, which are the targets of the decoder.
            embed_maps: Function that maps feature maps to embeddings: the model's pooling and its embedder.

        Raises:
            ValueError: There are fewer images than clusters of the head, or the shapes do not match.
        """
        return self.terms(maps, second_embeddings, images, embed_maps).total

    def terms(
        self,
        maps: Float[Tensor, "b f y x"],
        second_embeddings: Float[Tensor, "b d"],
        images: Float[Tensor, "b c h w"],
        embed_maps: Callable[[Tensor], Tensor],
    ) -> CBSwRTerms:
        """Compute the total loss and its parts. The arguments are those of `forward`."""
        if len(maps) < self.head.n_clusters:
            rule = f"A batch must have at least {self.head.n_clusters} images, one per cluster of the head"
            remedy = "Use larger batches, drop the last batch if it is smaller, or build the head with fewer clusters"
            raise value_error(rule, len(maps), remedy)
        maps = at_least_float32(maps)
        embeddings = embed_maps(maps)
        logits = self.head(embeddings)
        clusters = logits.argmax(dim=1).unique(return_inverse=True)[1]  # clusters without images are skipped
        centers = center_maps(maps, clusters)
        with torch.no_grad():  # batch norm in the embedder needs more than one row, so the images are embedded, too
            embedded_centers = embed_maps(torch.cat([maps, centers]))[len(maps) :]
        metric = self.metric_loss(embeddings, second_embeddings, clusters, embedded_centers)
        information = self.information_loss(logits)
        reconstruction = metric.new_zeros(())
        if self.decoder is not None:
            reconstruction = reconstruction_loss(self.decoder(centers), images, clusters)
        total = self.metric_weight * metric + self.information_weight * information
        return CBSwRTerms(total + self.reconstruction_weight * reconstruction, metric, information, reconstruction)
