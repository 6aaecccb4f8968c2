"""Ranking in embedding space: the farther a synthetic embedding was shifted, the less similar it may be."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_integer, check_number, value_error
from udmlss.losses.proxies import check_dimension
from udmlss.losses.ranking.functional import draws_on, positive_loss, rank_loss


class SynthesisRankingLoss(nn.Module):
    r"""Keeps synthetic embeddings around each embedding in the order of their distance, and near their centroid.

    $$r_i^j = r_i + j \alpha \, u_i^j$$

    $$L = \frac{1}{n} \sum_i \Big( w_r L_i + w_a \log ( 1 + \sum_j e^{t (m - \phi(r_i^j) \cdot \phi(p_i))} ) \Big)$$

    where $u_i^j$ is a random unit direction, drawn afresh for each embedding $r_i$ and each j from 1 to N, $L_i$ is the
    `rank_loss` over all pairs of the N cosines of $\phi(r_i^j)$ and $\phi(r_i)$, $p_i$ is the centroid of the cluster,
    and the head $\phi$ is a linear layer followed by normalisation. Only the n embeddings whose cosine to their
    centroid reaches the gate take part. Retrieval uses $r$ and not $\phi(r)$.

    It is a metric loss `(embeddings, labels) -> scalar` and goes beside others with `MultipleLosses`. Its head trains
    with the loss's parameters. `UDMLSSLoss.start_round` gives it the centroids of each round, of any number.

    Args:
        embedding_size: Dimension d of the embeddings. Embeddings and centroids are normalised first.
        versions: Number N of synthetic embeddings around each. Default as released: 5.
        radius: Length alpha by which each is shifted farther than the one before. Default as released: 1, the
            length of an embedding.
        margin: Margin delta between any two cosines. Default as released: 0.11.
        scale: Scale s of the ranking. Default as released: 32.
        gate: Least cosine of an embedding to its centroid, in -1..1. Default as released: 0.05, a low one.
        anchor_margin: Margin m that the synthetic embeddings' cosine to the centroid must reach, in -1..1.
        anchor_scale: Scale t of the second term; both as Proxy Anchor's: 0.1 and 32.
        ranking_weight: Weight of the first term. Default as released: 0.9.
        anchor_weight: Weight of the second term. Default as released: 0.9, for true labels. It draws each embedding to
            its centroid, so 0 is safer where clusters are often wrong, as when a network learns from scratch.
        rectify: Whether the head ends in a ReLU, as the released one does. Without, similarities are cosines.
        proxies: Proxies (k d) of another loss, such as `ProxyAnchorLoss(k, d).proxies`, in the place of centroids.
        seed: Seed of the directions.

    Raises:
        ValueError: A number out of its range, or proxies of another dimension.

    Example:
        >>> from pytorch_metric_learning import losses
        >>> from udmlss.losses import SynthesisRankingLoss
        >>> anchor = losses.ProxyAnchorLoss(2, 16)
        >>> ranking = SynthesisRankingLoss(16, proxies=anchor.proxies)
        >>> criterion = UDMLSSLoss(losses.MultipleLosses([anchor, ranking], weights=[1, 0.23]))
        >>> criterion(torch.randn(4, 16), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])

    References:
        Deep metric learning assisted by intra-variance in a semi-supervised view of learning. Liu et al. 2023.
        https://arxiv.org/abs/2304.10941, after Self-supervised Synthesis Ranking for Deep Metric Learning. Fu et al.
        2021. https://doi.org/10.1109/TCSVT.2021.3124908. Both are supervised, with class proxies.
        The released code shifts all by one set of learnt directions and normalises the shifts after scaling them,
        which makes all equally long; gates by proxies of any length; takes the second term of the last embedding of
        a class alone; counts each pair of the first term twice; sums over classes; and gives the base loss
        $\phi(r)$. Here directions are drawn, shifts keep their length, the gate is a cosine, every admitted
        embedding counts, each pair once, the mean is over embeddings, and the base loss sees $r$.
    """

    proxies: Tensor | None

    def __init__(
        self,
        embedding_size: int,
        *,
        versions: int = 5,
        radius: float = 1.0,
        margin: float = 0.11,
        scale: float = 32.0,
        gate: float = 0.05,
        anchor_margin: float = 0.1,
        anchor_scale: float = 32.0,
        ranking_weight: float = 0.9,
        anchor_weight: float = 0.9,
        rectify: bool = False,
        proxies: nn.Parameter | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size, 1)
        check_integer("versions", versions, 2)
        for name, value in (("radius", radius), ("scale", scale), ("anchor_scale", anchor_scale)):
            check_number(name, value, above=0)
        for name, value in (("margin", margin), ("ranking_weight", ranking_weight), ("anchor_weight", anchor_weight)):
            check_number(name, value, 0)
        for name, value in (("gate", gate), ("anchor_margin", anchor_margin)):
            check_number(name, value, -1, 1)
        self.embedding_size = embedding_size
        self.versions, self.radius = versions, radius
        self.margin, self.scale, self.gate = margin, scale, gate
        self.anchor_margin, self.anchor_scale = anchor_margin, anchor_scale
        self.ranking_weight, self.anchor_weight, self.rectify = ranking_weight, anchor_weight, rectify
        self.layer = nn.Linear(embedding_size, embedding_size)
        nn.init.orthogonal_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.draws = torch.Generator().manual_seed(seed)
        if proxies is not None:
            check_dimension(self, embedding_size, proxies.shape[-1])
            self.proxies = proxies
        else:
            self.register_buffer("proxies", None, persistent=False)  # k may change, and a new round sets it anyway

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Int[Tensor, " b"],
        indices_tuple: object = None,  # noqa: ARG002 (MultipleLosses passes it on)
    ) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            embeddings: Embeddings of the batch.
            labels: The row of each one's centroid or proxy.
            indices_tuple: Mined pairs, of which it makes no use.

        Returns:
            The loss. Where no embedding passes the gate it is zero and has a gradient.

        Raises:
            ValueError: No centroids, labels that are no rows of them, or embeddings of another dimension.
        """
        check_dimension(self, self.embedding_size, embeddings.shape[-1])
        as_labels(labels, len(embeddings))
        centroids = self._centroids_of(labels)
        embeddings, centroids = functional.normalize(embeddings), functional.normalize(centroids.to(embeddings))
        admitted = (embeddings * centroids).sum(dim=1) >= self.gate
        embeddings, centroids = embeddings[admitted], centroids[admitted]
        synthetic = self._project(self._shift(embeddings))
        to_source = torch.einsum("bnd,bd->bn", synthetic, self._project(embeddings))
        to_centroid = torch.einsum("bnd,bd->bn", synthetic, self._project(centroids))
        ranking = rank_loss(to_source, self.margin, self.scale, pairs="all")
        anchor = self.anchor_scale * positive_loss(to_centroid, self.anchor_margin, self.anchor_scale)
        return self.ranking_weight * ranking + self.anchor_weight * anchor

    def set_centers(self, centroids: Float[Tensor, "k d"] | None) -> None:
        """Take the centroids of a new clustering, unless it has proxies of another loss; `start_round` calls it.

        Args:
            centroids: One row per cluster, in the space of the embeddings; supervised, the mean of each class.

        Raises:
            ValueError: There are none, or they are of another dimension.
        """
        if isinstance(self.proxies, nn.Parameter):
            return
        if centroids is None:
            raise _no_centroids("Let the labeler give them: udmlss.clustering.cluster_means(embeddings, labels, k)")
        check_dimension(self, self.embedding_size, centroids.shape[1])
        self.proxies = centroids.detach().to(self.layer.weight)

    def _centroids_of(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        if self.proxies is None:
            raise _no_centroids("Call `start_round(pseudo)` after every clustering, or pass `proxies=`")
        if not ((labels >= 0) & (labels < len(self.proxies))).all():
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise value_error(
                f"`labels` must lie in 0..{len(self.proxies) - 1}, a centroid for each",
                found,
                "Call `start_round(pseudo)` after every clustering, and mask -1, as UDMLSSLoss does",
            )
        return self.proxies[labels.long()]

    def _shift(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        """Return synthetic embeddings, the j-th shifted by j times the radius in a direction of its own."""
        draws = draws_on(embeddings.device, self.draws)
        shape = (len(embeddings), self.versions, self.embedding_size)
        found = torch.randn(shape, generator=draws, device=embeddings.device, dtype=embeddings.dtype)
        lengths = self.radius * torch.arange(1, self.versions + 1).to(embeddings)
        return embeddings.unsqueeze(1) + lengths.unsqueeze(1) * functional.normalize(found, dim=2)

    def _project(self, rows: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        projected = functional.normalize(self.layer(rows), dim=-1)
        return projected.relu() if self.rectify else projected


def _no_centroids(remedy: str) -> ValueError:
    return value_error("SynthesisRankingLoss needs the clusters' centroids", "none", remedy)
