"""Loss of a student that learns the similarities of its teacher, without labels or clusters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_integer, check_number, value_error
from udmlss.losses.stml.relaxed_contrastive import mean_pair_loss, relative_distances, teacher_similarity
from udmlss.types import Labels


class STMLLoss(nn.Module):
    r"""Relaxed contrastive loss of two embeddings of a student, with the similarities of its teacher as targets.

    $$L = \tfrac12 \big( L_{rc}(f, w) + L_{rc}(g, w) \big) + \frac1n \sum_i KL(p_i^g \,\|\, p_i^f), \quad
    p_i = \mathrm{softmax}_j(-\delta_{ij}), \quad \delta_{ij} = \frac{\|z_i - z_j\|}{\frac1n \sum_k \|z_i - z_k\|}$$

    where $f$ are the student's embeddings, which are used after training, $g$ are wider embeddings of a second head on
    the same trunk, $L_{rc}$ is `relaxed_contrastive_loss`, and $w$ is `teacher_similarity` of the teacher's wide
    embeddings. The second term pulls $f$ to $g$ and has no gradient with respect to $g$. The loss runs outside
    autocast, in float32, or in float64 for float64 embeddings.

    The teacher is the moving average of the trunk and the second head. In the paper, a batch has 24 images with 4
    nearest neighbors each, and two views of every image; the second head has 1024 dimensions, and the average has a
    decay of 0.999.

    Args:
        sigma: Scale of squared distances in the teacher's similarity, above 0. The default is the published value.
        delta: Margin of relative distances, above 0. The default is the published value for CUB and Cars; for SOP it is
            0.9.
        neighbors: Number of nearest rows in the batch that count as neighbors of a row, including itself. It should be
            the number of neighbors that are sampled together, times their views. The default is the published value.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> from udmlss.losses import STMLLoss
        >>> image_indices = list(range(12)) * 2
        >>> STMLLoss()(torch.randn(24, 8), torch.randn(24, 32), torch.randn(24, 32), image_indices).shape
        torch.Size([])

    References:
        Self-Taught Metric Learning without Labels. Kim, Kim, Cho, Kwak. 2022. https://arxiv.org/abs/2205.01903. As in
        the released code, the relaxed contrastive loss is a mean over pairs; the paper divides by n.
    """

    def __init__(self, *, sigma: float = 3.0, delta: float = 1.0, neighbors: int = 10) -> None:
        super().__init__()
        check_number("sigma", sigma, above=0)
        check_number("delta", delta, above=0)
        check_integer("neighbors", neighbors, 1)
        self.sigma, self.delta, self.neighbors = float(sigma), float(delta), int(neighbors)

    def forward(
        self,
        embeddings: Float[Tensor, "b d"],
        wide_embeddings: Float[Tensor, "b w"],
        teacher_embeddings: Float[Tensor, "b w"],
        image_indices: Labels,
    ) -> Float[Tensor, ""]:
        """Compute the scalar loss.

        Args:
            embeddings: The student's embeddings (b, d). Their scale does not matter.
            wide_embeddings: Embeddings (b, w) of the second head for the same features. Their scale does not matter.
            teacher_embeddings: The teacher's wide embeddings (b, w) of the same views, which receive no gradient.
            image_indices: Index of the image that each row is a view of.

        Raises:
            TypeError: `image_indices` are not integers.
            ValueError: The arguments differ in their number of rows, or embeddings are not finite.
        """
        if not len(embeddings) == len(wide_embeddings) == len(teacher_embeddings):
            rule = "`embeddings`, `wide_embeddings` and `teacher_embeddings` must have the same number of rows"
            found = f"{len(embeddings)}, {len(wide_embeddings)} and {len(teacher_embeddings)}"
            raise value_error(rule, found, "Pass the embeddings of one batch")
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = teacher_similarity(
                teacher_embeddings, image_indices, sigma=self.sigma, neighbors=self.neighbors
            )
            narrow, wide = relative_distances(embeddings), relative_distances(wide_embeddings, "wide_embeddings")
            contrastive = mean_pair_loss(narrow, similarity, self.delta) + mean_pair_loss(wide, similarity, self.delta)
            log_p, target = functional.log_softmax(-narrow, dim=1), functional.log_softmax(-wide.detach(), dim=1)
            return contrastive / 2 + functional.kl_div(log_p, target, reduction="batchmean", log_target=True)
