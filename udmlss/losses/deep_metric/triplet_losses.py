"""Triplet losses of Deep_Metric and the margin loss with distance-weighted sampling."""

from pytorch_metric_learning.losses import MarginLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, DistanceWeightedMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import nn

from udmlss._checks import check_number, value_error
from udmlss.losses.deep_metric.mined_loss import MinedLoss, SeededMiner


def batch_all(*, margin: float = 0.2) -> nn.Module:
    r"""Build the triplet loss of all triplets of a batch.

    $$\operatorname*{mean}_{i,\,j\in P_i,\,k\in N_i}\max(0,\,d_{ij}-d_{ik}+m),\quad d_{ij}=\lVert z_i-z_j\rVert$$

    The mean includes triplets whose loss is zero. The loss needs memory of order n cubed.

    Args:
        margin: Margin m of Euclidean distances, at least 0.

    Raises:
        ValueError: `margin` is negative.

    References:
        In Defense of the Triplet Loss for Person Re-Identification. Hermans, Beyer, Leibe. 2017.
        https://arxiv.org/abs/1703.07737. The paper uses the sum over triplets.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.batch_all()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.2000)
    """
    check_number("margin", margin, 0)
    loss: nn.Module = TripletMarginLoss(margin=float(margin), reducer=MeanReducer())
    return loss


def batch_hard(*, margin: float = 0.2) -> nn.Module:
    r"""Build the triplet loss of the farthest positive and the closest negative of each anchor.

    $$\operatorname*{mean}_i\max(0,\,\max_{j\in P_i}d_{ij}-\min_{k\in N_i}d_{ik}+m),\quad
    d_{ij}=\lVert z_i-z_j\rVert$$

    The mean is over the anchors that have a positive and a negative.

    Args:
        margin: Margin m of Euclidean distances, at least 0. The default is the value released for `batch_all`, because
            none was released for this loss.

    Raises:
        ValueError: `margin` is negative.

    References:
        The paper of `batch_all`, which uses the sum over anchors.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.batch_hard()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.2000)
    """
    check_number("margin", margin, 0)
    return MinedLoss(TripletMarginLoss(margin=float(margin), reducer=MeanReducer()), BatchHardMiner())


def distance_weighted_margin(
    *, margin: float = 0.2, beta: float = 1.2, cutoff: float = 0.5, seed: int | None = None
) -> nn.Module:
    r"""Build the margin loss of triplets whose negatives are sampled evenly over distances.

    $$\frac{\sum_{(i,j,k)}\max(0,d_{ij}-\beta+m)+\max(0,\beta-d_{ik}+m)}{\#\{\text{terms above }0\}},\quad
    d_{ij}=\lVert z_i-z_j\rVert$$

    The number of triplets sampled per anchor is the number of images of its cluster in the batch. The positive is
    sampled uniformly. The negative is sampled with a probability proportional to $1/q(d_{ik})$, where
    $q(d)\propto d^{D-2}(1-d^2/4)^{(D-3)/2}$ is the density of the distance $d$ between random points on a sphere in D
    dimensions. Distances below the cutoff are raised to it, and negatives beyond $\beta+m$ are not sampled.

    Args:
        margin: Margin m, at least 0. The default is the published value.
        beta: Distance beta of the boundary, above 0. It is not learned. The default is the published value.
        cutoff: Smallest distance, above 0 and below both 2 and `beta + margin`. It limits the variance of the
            gradient. The default is the published value.
        seed: Seed of the sampled triplets, at least 0. The random numbers are the loss's own and continue from call to
            call. None uses the seed of `fit`, or 0 without `fit`.

    Raises:
        ValueError: A setting is out of its range.

    References:
        Sampling Matters in Deep Embedding Learning. Wu, Manmatha, Smola, Krähenbühl. 2017.
        https://arxiv.org/abs/1706.07567. The implementation in metriclearningbench
        (https://github.com/vadimkantorov/metriclearningbench) uses each positive once, whereas PML samples positives.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> embeddings = nn.functional.normalize(torch.tensor([[4.0, 0, 0], [4, 0, 1], [4, 1, 0], [4, 1, 1]]))
        >>> deep_metric.distance_weighted_margin()(embeddings, torch.tensor([0, 0, 1, 1])) > 1
        tensor(True)
    """
    check_number("margin", margin, 0)
    check_number("beta", beta, above=0)
    check_number("cutoff", cutoff, above=0)
    largest = min(2.0, float(beta) + float(margin))
    if not cutoff < largest:
        rule = f"`cutoff` must be below {largest:g}: no negative is sampled beyond `beta + margin` or a distance of 2"
        raise value_error(rule, cutoff, "Lower it")
    miner = DistanceWeightedMiner(cutoff=float(cutoff), nonzero_loss_cutoff=float(beta + margin))
    return MinedLoss(MarginLoss(margin=float(margin), beta=float(beta)), SeededMiner(miner, seed=seed))
