"""The loss that pulls only the closest positive, Deep_Metric's "Neighbour" loss."""

from jaxtyping import Float, Int
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.common_functions import indices_tuple_not_supported
from pytorch_metric_learning.utils.loss_and_miner_utils import get_matches_and_diffs
from torch import Tensor, nn

from udmlss._checks import check_number
from udmlss.losses.deep_metric.mined_loss import Indices


class NearestPositiveLoss(nn.Module):
    r"""Pull each anchor to its closest positive only, and push what lies closer than that and a margin.

    $$\frac1n\sum_{i:\,N_i'\ne\emptyset}\Big[d_i-\operatorname*{mean}_{k\in N_i'}\lVert z_i-z_k\rVert+m\Big],\quad
    d_i=\min_{j\in P_i}\lVert z_i-z_j\rVert,\quad N_i'=\{k\in N_i:\lVert z_i-z_k\rVert<d_i+m\}$$

    for embeddings $z$ at unit length, with positives $P_i$ in the anchor's cluster and negatives $N_i$ in others. A
    cluster may so have several parts: what is far from an anchor in its own cluster is left where it is. There is no
    hinge, for the choice of negatives is one: each term lies above 0. An anchor without positives loses nothing.

    Args:
        margin: Margin m of Euclidean distances, at least 0. Default as first released: 0.1; later, 0.05.

    Raises:
        ValueError: `margin` is negative.

    Example:
        >>> from udmlss.losses import NearestPositiveLoss
        >>> NearestPositiveLoss()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.1000)

    References:
        Deep_Metric. Wang. 2018. https://github.com/bnu-wangxun/Deep_Metric. Its code needs clusters of equal size;
        here any will do.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        check_number("margin", margin, 0)
        self.margin = margin
        self.distance = LpDistance()

    def forward(
        self, embeddings: Float[Tensor, "b d"], labels: Int[Tensor, " b"], indices_tuple: Indices | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss, divided by all embeddings of the batch.

        Args:
            embeddings: Embeddings of the batch.
            labels: Their clusters.
            indices_tuple: None; the place of mined pairs in PML, which this loss does not take.

        Raises:
            ValueError: There are mined pairs.
        """
        indices_tuple_not_supported(indices_tuple)
        distance = self.distance(embeddings)
        positive, negative = (mask.bool() for mask in get_matches_and_diffs(labels))
        nearest = distance.masked_fill(~positive, float("inf")).amin(dim=1)
        close = negative & (distance < nearest.unsqueeze(1) + self.margin) & nearest.isfinite().unsqueeze(1)
        pushed = close.any(dim=1)
        mean = (distance * close).sum(dim=1)[pushed] / close.sum(dim=1)[pushed]
        loss: Tensor = (nearest[pushed] - mean + self.margin).sum() / len(embeddings)
        return loss
