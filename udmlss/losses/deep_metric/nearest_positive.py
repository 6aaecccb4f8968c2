"""Loss of the closest positive of each anchor, the "Neighbour" loss of Deep_Metric."""

from jaxtyping import Float
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.common_functions import indices_tuple_not_supported
from pytorch_metric_learning.utils.loss_and_miner_utils import get_matches_and_diffs
from torch import Tensor, nn

from udmlss._checks import as_labels, check_embeddings, check_number
from udmlss.losses.deep_metric.mined_loss import Indices
from udmlss.types import Labels


class NearestPositiveLoss(nn.Module):
    r"""Loss of the closest positive of each anchor and of the negatives within a margin of it.

    $$\frac1n\sum_{i:\,N_i'\ne\emptyset}\Big[d_i-\operatorname*{mean}_{k\in N_i'}\lVert z_i-z_k\rVert+m\Big],\quad
    d_i=\min_{j\in P_i}\lVert z_i-z_j\rVert,\quad N_i'=\{k\in N_i:\lVert z_i-z_k\rVert<d_i+m\}$$

    for embeddings $z$ at unit length, the positives $P_i$ in the anchor's cluster and the negatives $N_i$ in other
    clusters. A cluster may have several parts, because positives other than the closest one have no effect. No hinge is
    needed, because the selected negatives make every term positive. The loss of an anchor without positives is zero.

    Args:
        margin: Margin m of Euclidean distances, at least 0. The default is the value of the first release; a later one
            has 0.05.

    Raises:
        ValueError: `margin` is negative.

    Example:
        >>> from udmlss.losses import NearestPositiveLoss
        >>> NearestPositiveLoss()(torch.eye(4), [0, 0, 1, 1])
        tensor(0.1000)

    References:
        Deep_Metric. Wang. 2018. https://github.com/bnu-wangxun/Deep_Metric. The released code needs clusters of equal
        size.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        check_number("margin", margin, 0)
        self.margin = float(margin)
        self.distance = LpDistance()

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Labels, indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss. The arguments and errors are those of `ClusterNCALoss.forward`."""
        indices_tuple_not_supported(indices_tuple)
        check_embeddings(embeddings)
        labels = as_labels(labels, len(embeddings)).to(embeddings.device)
        distance = self.distance(embeddings)
        positive, negative = (mask.bool() for mask in get_matches_and_diffs(labels))
        nearest = distance.masked_fill(~positive, float("inf")).amin(dim=1)
        close = negative & (distance < nearest.unsqueeze(1) + self.margin) & nearest.isfinite().unsqueeze(1)
        active = close.any(dim=1)
        mean = (distance * close).sum(dim=1)[active] / close.sum(dim=1)[active]
        loss: Tensor = (nearest[active] - mean + self.margin).sum() / len(embeddings)
        return loss
