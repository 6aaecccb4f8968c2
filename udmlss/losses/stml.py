"""STML: the similarities that a teacher sees in a batch, taught to a student, without labels or clusters."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import as_labels, check_embeddings, check_integer, check_number, value_error


class STMLLoss(nn.Module):
    r"""Teaches two embeddings of a batch the similarities of a third, its teacher's.

    $$L = \tfrac12 \big( L_{rc}(f, w) + L_{rc}(g, w) \big) + \frac1n \sum_i KL(p_i^g \,\|\, p_i^f), \quad
    p_i = \mathrm{softmax}_j(-\delta_{ij}), \quad \delta_{ij} = \frac{\|z_i - z_j\|}{\frac1n \sum_k \|z_i - z_k\|}$$

    where $f$ are the student's embeddings, which are used in the end, $g$ wider ones from a second head on the same
    trunk, $L_{rc}$ is the `relaxed_contrastive_loss` and $w$ the `teacher_similarity` of the teacher's wide embeddings.
    The second term draws $f$ to $g$ and leaves $g$ as it is. It runs in float32 outside autocast, in float64 if given
    that.

    The teacher is the moving average of trunk and second head. As published: batches of 24 images with 4 nearest
    neighbours each, two views of all; a wide head of 1024 dimensions; an average with decay 0.999.

    Args:
        sigma: How fast similarity falls with squared distance, above 0. Default as published: 3.
        delta: Distance, as a multiple of the mean one, beyond which nothing is pushed; above 0. Default as published
            for CUB and Cars: 1. For SOP it is 0.9.
        neighbors: How many rows of the batch count as near to a row, itself among them: the neighbours drawn together
            times their views. Default as published: 10.

    Raises:
        ValueError: A number out of its range.

    Example:
        >>> from udmlss.losses import STMLLoss
        >>> images = torch.arange(12).repeat(2)
        >>> STMLLoss()(torch.randn(24, 8), torch.randn(24, 32), torch.randn(24, 32), images).shape
        torch.Size([])

    References:
        Self-Taught Metric Learning without Labels. Kim, Kim, Cho, Kwak. 2022. https://arxiv.org/abs/2205.01903. As in
        its released code, the relaxed contrastive loss is a mean over pairs, where the paper divides by n.
    """

    def __init__(self, *, sigma: float = 3.0, delta: float = 1.0, neighbors: int = 10) -> None:
        super().__init__()
        check_number("sigma", sigma, above=0)
        check_number("delta", delta, above=0)
        check_integer("neighbors", neighbors, 1)
        self.sigma, self.delta, self.neighbors = sigma, delta, neighbors

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        wide_embeddings: Float[Tensor, "b w"],
        taught: Float[Tensor, "b w"],
        images: Int[Tensor, " b"],
    ) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            embeddings: The student's embeddings, of any length: distances are relative.
            wide_embeddings: What the second head makes of the same features, of any length.
            taught: The teacher's wide embeddings of the same images; no gradient goes there.
            images: Which image each row is a view of, any whole numbers.

        Raises:
            ValueError: Rows that are not as many, or not finite.
        """
        as_labels(images, len(embeddings), "images")
        if not len(embeddings) == len(wide_embeddings) == len(taught):
            raise value_error(
                "`embeddings`, `wide_embeddings` and `taught` must have a row for each image of the batch",
                f"{len(embeddings)}, {len(wide_embeddings)} and {len(taught)}",
                "Pass what student and teacher make of one batch",
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = teacher_similarity(taught, images, sigma=self.sigma, neighbors=self.neighbors)
            narrow, wide = relative_distances(embeddings), relative_distances(wide_embeddings)
            contrast = _contrast(narrow, similarity, self.delta) + _contrast(wide, similarity, self.delta)
            own, target = functional.log_softmax(-narrow, dim=1), functional.log_softmax(-wide.detach(), dim=1)
            return contrast / 2 + functional.kl_div(own, target, reduction="batchmean", log_target=True)


def teacher_similarity(
    taught: Float[Tensor, "b w"], images: Int[Tensor, " b"], *, sigma: float, neighbors: int
) -> Float[Tensor, "b b"]:
    r"""Return how alike the teacher finds each two rows of a batch, in 0..1.

    $$w_{ij} = \tfrac12 e^{-\|t_i - t_j\|^2 / \sigma} + \tfrac14 (\hat c_{ij} + \hat c_{ji}), \quad
    \hat c_{ij} = \operatorname*{mean}_{h \in H_i} c_{hj}, \quad
    c_{ij} = \frac{|R_i \cap R_j|}{|R_i|} \text{ if } j \in R_i, \text{ else } 0$$

    for teacher's embeddings $t$ at unit length. $R_i$ are the rows that have i, and that i has, among their nearest,
    views of one image before all others; $H_i$ is the nearer half of the nearest of i.

    Args:
        taught: The teacher's embeddings, of any length.
        images: Which image each row is a view of.
        sigma: As in `STMLLoss`.
        neighbors: As in `STMLLoss`.

    Example:
        >>> from udmlss.losses.relaxed_contrastive import teacher_similarity
        >>> teacher_similarity(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]), sigma=1, neighbors=2)[0]
        tensor([1.0000, 0.0677, 1.0000, 0.0677])
    """
    check_embeddings(taught, "taught")
    rows = functional.normalize(taught.detach().to(torch.promote_types(taught.dtype, torch.float32)))
    pairwise = torch.exp(-torch.cdist(rows, rows).square() / sigma)
    images = images.to(rows.device)
    ranked = pairwise + (images.unsqueeze(1) == images)
    nearest = ranked.topk(min(neighbors, len(rows)), dim=1).indices
    is_near = torch.zeros_like(pairwise).scatter(1, nearest, 1)
    mutual = is_near * is_near.T
    shared = mutual * (mutual @ mutual) / mutual.sum(dim=1, keepdim=True).clamp(min=1)
    expanded = shared[nearest[:, : max(1, neighbors // 2)]].mean(dim=1)
    return pairwise / 2 + (expanded + expanded.T) / 4


def relaxed_contrastive_loss(
    embeddings: Float[Tensor, "b d"], similarity: Float[Tensor, "b b"], *, delta: float = 1.0
) -> Float[Tensor, ""]:
    r"""Pull and push every pair by how alike its two are.

    $$L = \operatorname*{mean}_{i \ne j} \; w_{ij} \delta_{ij}^2 + (1 - w_{ij}) \max(0, m - \delta_{ij})^2$$

    where $\delta_{ij}$ is the distance of two embeddings as a multiple of the mean distance from the first.

    Args:
        embeddings: Embeddings of the batch, of any length.
        similarity: How alike each two are, w in 0..1: 1 for true positives, 0 for true negatives.
        delta: Margin m of relative distances.

    Returns:
        The loss; zero, with a gradient, for a batch of one.

    Example:
        >>> from udmlss.losses.relaxed_contrastive import relaxed_contrastive_loss
        >>> alike = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
        >>> relaxed_contrastive_loss(torch.tensor([[0.0], [0.0], [3.0]]), alike)
        tensor(0.)

    References:
        Embedding Transfer with Label Relaxation for Improved Metric Learning. Kim, Kim, Cho, Kwak. 2021.
        https://arxiv.org/abs/2103.14908
    """
    return _contrast(relative_distances(embeddings), similarity, delta)


def relative_distances(embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Return the distance of each two rows, divided by the mean distance from the first of them."""
    check_embeddings(embeddings)
    rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    distances = torch.cdist(rows, rows)
    mean = distances.mean(dim=1, keepdim=True)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)


def _contrast(distances: Float[Tensor, "b b"], similarity: Float[Tensor, "b b"], delta: float) -> Float[Tensor, ""]:
    losses = similarity * distances.square() + (1 - similarity) * (delta - distances).relu().square()
    n = len(distances)
    others = ~torch.eye(n, dtype=torch.bool, device=distances.device)
    return (losses * others).sum() / max(1, n * (n - 1))
