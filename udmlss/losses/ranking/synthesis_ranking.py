"""Ranking loss of synthetic embeddings at increasing distances from an embedding."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_integer, check_number, type_error, value_error
from udmlss.losses.proxies import check_dimension, missing_centers
from udmlss.losses.ranking.functional import generator_on, positive_loss, rank_loss, seeded_generator, set_default_seed
from udmlss.types import Labels


class SynthesisRankingLoss(nn.Module):
    r"""Ranking loss of synthetic embeddings, whose similarity to their embedding should decrease with their distance.

    $$r_i^j = r_i + j \alpha \, u_i^j$$

    $$L = \frac{1}{n} \sum_i \Big( w_r L_i + w_a \log ( 1 + \sum_j e^{t (m - \phi(r_i^j) \cdot \phi(p_i))} ) \Big)$$

    where $u_i^j$ is a random unit vector, sampled for each embedding $r_i$ and each j from 1 to N, $L_i$ is the
    `rank_loss` over all pairs of the N similarities of $\phi(r_i^j)$ and $\phi(r_i)$, $p_i$ is the center of the
    cluster, and the head $\phi$ is a linear layer followed by normalization. The sum is over the n embeddings whose
    cosine similarity to their center is at least `min_similarity`. Retrieval uses $r$ and not $\phi(r)$.

    The loss is a metric loss `(embeddings, labels) -> scalar` and can be combined with others by `MultipleLosses`. Its
    head is trained with the parameters of the criterion. `UDMLSSLoss.start_round` sets the centers of each round, whose
    number may change.

    Args:
        embedding_size: Dimension d of the embeddings. Embeddings and centers are normalized first.
        n_synthetic: Number N of synthetic embeddings per embedding, at least 2. The defaults are the released values.
        radius: Distance alpha of the first synthetic embedding from the embedding, above 0. The j-th is at j times this
            distance. The default is the length of an embedding.
        margin: Margin delta between two similarities, at least 0.
        scale: Scale s of the ranking loss, above 0.
        min_similarity: Smallest cosine similarity of an embedding to its center, in -1..1. The default excludes few
            embeddings.
        anchor_margin: Similarity m of a synthetic embedding to the center above which the second term is small, in
            -1..1. The default is that of Proxy Anchor, as that of `anchor_scale`.
        anchor_scale: Scale t of the second term, above 0.
        ranking_weight: Weight w_r of the first term, at least 0.
        anchor_weight: Weight w_a of the second term, at least 0. The default is for true labels. This term pulls each
            embedding to its center, so 0 is safer if clusters are often wrong, for example in training from scratch.
        relu: Whether the head ends in a ReLU, as in the released code. Without it, the similarities are cosines.
        proxies: Proxies (k, d) of another loss to use instead of centers, such as `ProxyAnchorLoss(k, d).proxies`. None
            uses the centers of each round.
        seed: Seed of the directions, at least 0. None uses the seed of `fit`, or 0.

    Raises:
        ValueError: A setting is out of its range, or `proxies` are of another dimension.
        TypeError: `proxies` is not a parameter.

    Example:
        >>> from pytorch_metric_learning import losses
        >>> from udmlss.losses import SynthesisRankingLoss
        >>> anchor = losses.ProxyAnchorLoss(2, 16)
        >>> ranking = SynthesisRankingLoss(16, proxies=anchor.proxies)
        >>> criterion = UDMLSSLoss(losses.MultipleLosses([anchor, ranking], weights=[1, 0.23]))
        >>> criterion(torch.randn(4, 16), [0, 0, 1, 1]).shape
        torch.Size([])

    References:
        Deep metric learning assisted by intra-variance in a semi-supervised view of learning. Liu et al. 2023.
        https://arxiv.org/abs/2304.10941, after Self-supervised Synthesis Ranking for Deep Metric Learning. Fu et al.
        2021. https://doi.org/10.1109/TCSVT.2021.3124908. Both methods are supervised and use class proxies.
        The released code differs from this loss: it shifts all embeddings in one set of learned directions, normalizes
        the shifts after scaling, which makes them equally long, compares `min_similarity` with a dot product instead of
        a cosine, computes the second term for the last embedding of each class only, counts each pair of the first term
        twice, sums over classes instead of averaging over embeddings, and passes $\phi(r)$ to the base loss.
    """

    proxies: Tensor | None

    def __init__(
        self,
        embedding_size: int,
        *,
        n_synthetic: int = 5,
        radius: float = 1.0,
        margin: float = 0.11,
        scale: float = 32.0,
        min_similarity: float = 0.05,
        anchor_margin: float = 0.1,
        anchor_scale: float = 32.0,
        ranking_weight: float = 0.9,
        anchor_weight: float = 0.9,
        relu: bool = False,
        proxies: nn.Parameter | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size, 1)
        check_integer("n_synthetic", n_synthetic, 2)
        for name, value in (("radius", radius), ("scale", scale), ("anchor_scale", anchor_scale)):
            check_number(name, value, above=0)
        for name, value in (("margin", margin), ("ranking_weight", ranking_weight), ("anchor_weight", anchor_weight)):
            check_number(name, value, 0)
        for name, value in (("min_similarity", min_similarity), ("anchor_margin", anchor_margin)):
            check_number(name, value, -1, 1)
        self.embedding_size, self.n_synthetic = int(embedding_size), int(n_synthetic)
        self.radius, self.margin, self.scale = float(radius), float(margin), float(scale)
        self.min_similarity = float(min_similarity)
        self.anchor_margin, self.anchor_scale = float(anchor_margin), float(anchor_scale)
        self.ranking_weight, self.anchor_weight, self.relu = float(ranking_weight), float(anchor_weight), relu
        self.layer = nn.Linear(self.embedding_size, self.embedding_size)
        nn.init.orthogonal_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.seed, self.generator = seed, seeded_generator(seed)
        if proxies is not None:
            if not isinstance(proxies, nn.Parameter):
                rule, remedy = "`proxies` must be a parameter", "Pass nn.Parameter(proxies, requires_grad=False)"
                raise type_error(rule, type(proxies).__name__, remedy)
            check_dimension(self, self.embedding_size, proxies.shape[-1])
            self.proxies = proxies
        else:
            # The centers are not part of the state dict, because their number may change and each round sets them.
            self.register_buffer("proxies", None, persistent=False)

    def set_default_seed(self, seed: int) -> None:
        """Set the seed that is used if `seed` is None."""
        if self.seed is None:
            set_default_seed(self.generator, seed)

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        labels: Labels,
        indices_tuple: object = None,  # noqa: ARG002 (MultipleLosses passes it)
    ) -> Float[Tensor, ""]:
        """Compute the loss, which is zero with a gradient if all similarities are below `min_similarity`.

        Args:
            embeddings: Embeddings (b, d) of the batch.
            labels: Cluster of each embedding, which is the row of its center or proxy.
            indices_tuple: Mined pairs, which are ignored.

        Raises:
            TypeError: The labels are not integers.
            ValueError: Centers were not set, a label does not have a center, or the embeddings are of another
                dimension.
        """
        check_dimension(self, self.embedding_size, embeddings.shape[-1])
        centers = self._centers_of(as_labels(labels, len(embeddings)))
        embeddings, centers = functional.normalize(embeddings), functional.normalize(centers.to(embeddings))
        is_similar = ~((embeddings * centers).sum(dim=1) < self.min_similarity)  # or NaN, so that the loss is NaN, too
        embeddings, centers = embeddings[is_similar], centers[is_similar]
        synthetic = self._project(self._synthesize(embeddings))
        to_embedding = torch.einsum("bnd,bd->bn", synthetic, self._project(embeddings))
        to_center = torch.einsum("bnd,bd->bn", synthetic, self._project(centers))
        ranking = rank_loss(to_embedding, self.margin, self.scale, pairs="all")
        anchor = self.anchor_scale * positive_loss(to_center, self.anchor_margin, self.anchor_scale)
        return self.ranking_weight * ranking + self.anchor_weight * anchor

    def set_centers(self, centers: Float[Tensor, "k d"] | None) -> None:
        """Set the centers of a new clustering; `start_round` calls this method. With `proxies` it does nothing.

        Args:
            centers: Centers (k, d) in the space of the embeddings. With true labels, pass the mean of each class.

        Raises:
            ValueError: `centers` is None or of another dimension.
        """
        if isinstance(self.proxies, nn.Parameter):
            return
        if centers is None:
            raise missing_centers(self, "Return centers from the labeler: PseudoLabels.from_labels(labels, embeddings)")
        check_dimension(self, self.embedding_size, centers.shape[1])
        self.proxies = centers.detach().to(self.layer.weight)

    def _centers_of(self, labels: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        if self.proxies is None:
            raise missing_centers(self, "Call `start_round(pseudo_labels)` after every clustering, or pass `proxies`")
        if not ((labels >= 0) & (labels < len(self.proxies))).all():
            rule = f"`labels` must lie in 0..{len(self.proxies) - 1}, one center for each"
            remedy = "Call `start_round(pseudo_labels)` after every clustering, and mask -1 as UDMLSSLoss does"
            raise value_error(rule, f"{int(labels.min())} to {int(labels.max())}", remedy)
        return self.proxies[labels]

    def _synthesize(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        """Return synthetic embeddings, of which the j-th is at j times the radius in a random direction."""
        generator = generator_on(embeddings.device, self.generator)
        shape = (len(embeddings), self.n_synthetic, self.embedding_size)
        directions = torch.randn(shape, generator=generator, device=embeddings.device, dtype=embeddings.dtype)
        lengths = self.radius * torch.arange(1, self.n_synthetic + 1).to(embeddings)
        return embeddings.unsqueeze(1) + lengths.unsqueeze(1) * functional.normalize(directions, dim=2)

    def _project(self, rows: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        projections = functional.normalize(self.layer(rows), dim=-1)
        return projections.relu() if self.relu else projections
