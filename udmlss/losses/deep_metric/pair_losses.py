r"""Pair and triplet losses as Deep_Metric and its kin define them, from parts of pytorch-metric-learning (PML).

Each function returns a module `(embeddings, labels) -> scalar` for `UDMLSSLoss`, which then needs no `miner`: where one
belongs to the loss, it is inside. Embeddings are taken at unit length. In the equations $S_{ij}$ is the cosine of two
embeddings, $P_i$ are the others of anchor $i$'s cluster, $N_i$ those of other clusters. The losses on cosines are sums
over anchors divided by all n embeddings, of which some may find no pair; a term over no pairs is zero.

The released code leaves out an anchor without negatives and fails at one without positives; batches of two clusters or
more, of two images or more each, have neither. It takes every positive of cosine 1 for the anchor itself; here only the
anchor is left out.

References:
    Deep_Metric. Wang. 2018. https://github.com/bnu-wangxun/Deep_Metric
"""

from functools import partial

from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MarginLoss, MultiSimilarityLoss, TripletMarginLoss
from pytorch_metric_learning.miners import (
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    PairMarginMiner,
)
from pytorch_metric_learning.reducers import MeanReducer, PerAnchorReducer
from pytorch_metric_learning.utils.loss_and_miner_utils import logsumexp
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_integer, check_number
from udmlss.losses.deep_metric.mined_loss import AnchorLoss, MinedLoss, SeededMiner, all_pairs


def contrastive(*, threshold: float = 0.5) -> nn.Module:
    r"""Pull every positive, push every negative of a cosine above a threshold.

    $$\frac1n\sum_i\Big[\sum_{j\in P_i}(1-S_{ij})+\sum_{j\in N_i,\,S_{ij}>t}S_{ij}\Big]$$

    Args:
        threshold: Cosine t, at least 0. Default as released: 0.5.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    Raises:
        ValueError: `threshold` is negative.

    References:
        Dimensionality Reduction by Learning an Invariant Mapping. Hadsell, Chopra, LeCun. 2006.
        https://doi.org/10.1109/CVPR.2006.100

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.contrastive()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.)
    """
    check_number("threshold", threshold, 0)
    reducer = PerAnchorReducer(aggregation_func=_row_sums)  # sums, where PML takes means
    return MinedLoss(
        ContrastiveLoss(pos_margin=1, neg_margin=0, distance=CosineSimilarity(), reducer=reducer),
        PairMarginMiner(pos_margin=1, neg_margin=threshold, distance=CosineSimilarity()),
    )


def binomial_deviance(*, positive_scale: float = 2, negative_scale: float = 40, base: float = 0.5) -> nn.Module:
    r"""Smoothly pull and push each pair by how far its cosine lies on the wrong side of a base.

    $$\frac1n\sum_i\Big[\operatorname*{mean}_{j\in P_i}\log(1+e^{-\beta(S_{ij}-\lambda)})
    +\operatorname*{mean}_{j\in N_i}\log(1+e^{\alpha(S_{ij}-\lambda)})\Big]$$

    PML has no such loss; its distance and pairs are used.

    Args:
        positive_scale: Scale beta, above 0. Default as released: 2.
        negative_scale: Scale alpha, above 0. Default as released: 40.
        base: Cosine lambda. Default as released: 0.5.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    Raises:
        ValueError: A scale is not above 0.

    References:
        Deep Metric Learning for Practical Person Re-Identification. Yi, Lei, Li. 2014.
        https://arxiv.org/abs/1407.4979

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.binomial_deviance()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.3133)
    """
    _check_scales(positive_scale, negative_scale)
    return AnchorLoss(
        partial(_binomial_deviance, positive_scale=positive_scale, negative_scale=negative_scale, base=base),
        all_pairs,
    )


def lifted_structure(*, positive_scale: float = 2, negative_scale: float = 40, mined: bool = False) -> nn.Module:
    r"""Pull the farthest positives and push the closest negatives of each anchor, by soft maxima.

    $$\frac1n\sum_i\Big[\frac2\beta\log\sum_{j\in P_i}e^{-\beta S_{ij}}
    +\frac2\alpha\log\sum_{j\in N_i}e^{\alpha S_{ij}}\Big]$$

    This is Deep_Metric's modified form. PML's `GeneralizedLiftedStructureLoss` has no scales and clips each anchor's
    loss at 0, so only its distance, pairs, miner and log-sum-exp are used.

    Args:
        positive_scale: Scale beta, above 0. Default as released: 2.
        negative_scale: Scale alpha, above 0. Default as released: 40.
        mined: Whether to take only the pairs that the miner of `multi_similarity` finds. Default as released: no.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    Raises:
        ValueError: A scale is not above 0.

    References:
        Deep Metric Learning via Lifted Structured Feature Embedding. Song, Xiang, Jegelka, Savarese. 2016.
        https://arxiv.org/abs/1511.06452

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.lifted_structure()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.0347)
    """
    _check_scales(positive_scale, negative_scale)
    return AnchorLoss(
        partial(_lifted_structure, positive_scale=positive_scale, negative_scale=negative_scale),
        MultiSimilarityMiner(0.1) if mined else all_pairs,
    )


def multi_similarity(
    *, positive_scale: float = 2, negative_scale: float = 40, base: float = 0.5, epsilon: float = 0.1
) -> nn.Module:
    r"""Weigh each mined pair by its cosine and by those of the anchor's other pairs: the loss of UDML-SS.

    $$\frac1n\sum_i\Big[\frac1\beta\log\big(1+\sum_{j\in P_i'}e^{-\beta(S_{ij}-\lambda)}\big)
    +\frac1\alpha\log\big(1+\sum_{j\in N_i'}e^{\alpha(S_{ij}-\lambda)}\big)\Big]$$

    $P_i'$ are the positives less similar than the most similar negative plus epsilon, $N_i'$ the negatives more similar
    than the least similar positive minus epsilon.

    Args:
        positive_scale: Scale beta, above 0; PML calls it alpha. Default as released: 2.
        negative_scale: Scale alpha, above 0; PML calls it beta. Default as released: 40.
        base: Cosine lambda. Default as released: 0.5.
        epsilon: Slack in mining. Default as published: 0.1.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    Raises:
        ValueError: A scale is not above 0.

    References:
        Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning. Wang, Han, Huang, Dong, Scott. 2019.
        https://arxiv.org/abs/1904.06627

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.multi_similarity()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6566)
    """
    _check_scales(positive_scale, negative_scale)
    return MinedLoss(
        MultiSimilarityLoss(alpha=positive_scale, beta=negative_scale, base=base), MultiSimilarityMiner(epsilon)
    )


def hard_mining(*, epsilon: float = 0.1) -> nn.Module:
    r"""Pull and push evenly what the miner of `multi_similarity` finds.

    $$\frac1n\sum_i\Big[\operatorname*{mean}_{j\in P_i'}(1-S_{ij})+\operatorname*{mean}_{j\in N_i'}S_{ij}\Big]$$

    PML's `ContrastiveLoss` would clip cosines below 0, so only its distance and miner are used.

    Args:
        epsilon: Slack in mining. Default as released: 0.1.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.hard_mining()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.)
    """
    return AnchorLoss(_hard_mining, MultiSimilarityMiner(epsilon))


def nca(*, scale: float = 16, n_nearest: int = 32) -> nn.Module:
    r"""Raise the share of an anchor's own cluster among its K nearest, by a softmax over their cosines.

    $$-\frac1n\sum_i\log\frac{\sum_{j\in K_i\cap P_i}e^{\alpha S_{ij}}}{\sum_{j\in K_i}e^{\alpha S_{ij}}}$$

    $K_i$ are the K embeddings most similar to the anchor, and any as similar as the last of them. Where none is a
    positive, the most similar positive joins them. An anchor without positives loses nothing.

    PML's `NCALoss` takes the whole batch, and drops an anchor that shares nothing with its cluster; its distance,
    pairs and log-sum-exp are used.

    Args:
        scale: Scale alpha, above 0. Default as released: 16.
        n_nearest: Number K, at least 1; from n - 1 on, it is the whole batch. Default as released: 32.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    Raises:
        ValueError: `scale` is not above 0, or `n_nearest` is below 1.

    References:
        Learning a Nonlinear Embedding by Preserving Class Neighbourhood Structure. Salakhutdinov, Hinton. 2007.
        https://proceedings.mlr.press/v2/salakhutdinov07a.html. Deep_Metric's code cannot run as it stands, and would
        take the K least similar; here its comments are followed.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.nca()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """
    check_number("scale", scale, above=0)
    check_integer("n_nearest", n_nearest, 1)
    return AnchorLoss(partial(_nca, scale=scale, n_nearest=n_nearest), all_pairs)


def batch_all(*, margin: float = 0.2) -> nn.Module:
    r"""Ask of every triplet that its negative lie farther than its positive by a margin.

    $$\operatorname*{mean}_{i,\,j\in P_i,\,k\in N_i}\max(0,\,d_{ij}-d_{ik}+m),\quad d_{ij}=\lVert z_i-z_j\rVert$$

    The mean is over all triplets, also those that lose nothing. It takes memory of order n cubed.

    Args:
        margin: Margin m of Euclidean distances. Default as released: 0.2.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    References:
        In Defense of the Triplet Loss for Person Re-Identification. Hermans, Beyer, Leibe. 2017.
        https://arxiv.org/abs/1703.07737. They sum over triplets.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.batch_all()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.2000)
    """
    loss: nn.Module = TripletMarginLoss(margin=margin, reducer=MeanReducer())
    return loss


def batch_hard(*, margin: float = 0.2) -> nn.Module:
    r"""Ask of each anchor that its closest negative lie farther than its farthest positive by a margin.

    $$\operatorname*{mean}_i\max(0,\,\max_{j\in P_i}d_{ij}-\min_{k\in N_i}d_{ik}+m),\quad
    d_{ij}=\lVert z_i-z_j\rVert$$

    The mean is over the anchors that have a positive and a negative.

    Args:
        margin: Margin m of Euclidean distances. Default 0.2, as that released for `batch_all`; none is known for this.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    References:
        In Defense of the Triplet Loss for Person Re-Identification. Hermans, Beyer, Leibe. 2017.
        https://arxiv.org/abs/1703.07737. They sum over anchors.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.batch_hard()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.2000)
    """
    return MinedLoss(TripletMarginLoss(margin=margin, reducer=MeanReducer()), BatchHardMiner())


def distance_weighted_margin(
    *, margin: float = 0.2, beta: float = 1.2, cutoff: float = 0.5, seed: int = 0
) -> nn.Module:
    r"""Pull positives below one distance and push negatives above another, drawn evenly from near to far.

    $$\frac{\sum_{(i,j,k)}\max(0,d_{ij}-\beta+m)+\max(0,\beta-d_{ik}+m)}{\#\{\text{terms above }0\}},\quad
    d_{ij}=\lVert z_i-z_j\rVert$$

    An anchor draws as many triplets as its cluster has images in the batch: its positive at random, its negative with
    probability in proportion to $1/q(d_{ik})$, where $q(d)\propto d^{D-2}(1-d^2/4)^{(D-3)/2}$ is how often the
    distance $d$ comes about on a sphere in D dimensions. Distances count as at least the cutoff, and negatives beyond
    $\beta+m$ are not drawn.

    Args:
        margin: Margin m. Default as published: 0.2.
        beta: Distance beta of the boundary, fixed. Default as published: 1.2.
        cutoff: Least distance, which keeps the gradient's variance low. Default as published: 0.5.
        seed: Seed of the draws, which are the loss's own and go on from call to call.

    Returns:
        The loss, a module `(embeddings, labels) -> scalar`.

    References:
        Sampling Matters in Deep Embedding Learning. Wu, Manmatha, Smola, Krähenbühl. 2017.
        https://arxiv.org/abs/1706.07567. metriclearningbench (https://github.com/vadimkantorov/metriclearningbench)
        takes each positive once, where PML draws.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> embeddings = nn.functional.normalize(torch.tensor([[4.0, 0, 0], [4, 0, 1], [4, 1, 0], [4, 1, 1]]))
        >>> deep_metric.distance_weighted_margin()(embeddings, torch.tensor([0, 0, 1, 1])) > 1
        tensor(True)
    """
    miner = DistanceWeightedMiner(cutoff=cutoff, nonzero_loss_cutoff=beta + margin)
    return MinedLoss(MarginLoss(margin=margin, beta=beta), SeededMiner(miner, seed=seed))


def _check_scales(positive_scale: float, negative_scale: float) -> None:
    check_number("positive_scale", positive_scale, above=0)
    check_number("negative_scale", negative_scale, above=0)


def _binomial_deviance(
    similarity: Tensor, positive: Tensor, negative: Tensor, *, positive_scale: float, negative_scale: float, base: float
) -> Tensor:
    pull = functional.softplus(-positive_scale * (similarity - base))
    push = functional.softplus(negative_scale * (similarity - base))
    return _row_means(pull, positive) + _row_means(push, negative)


def _lifted_structure(
    similarity: Tensor, positive: Tensor, negative: Tensor, *, positive_scale: float, negative_scale: float
) -> Tensor:
    pull = _log_sum_exp(-positive_scale * similarity, positive)
    push = _log_sum_exp(negative_scale * similarity, negative)
    return 2 / positive_scale * pull + 2 / negative_scale * push


def _hard_mining(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return _row_means(1 - similarity, positive) + _row_means(similarity, negative)


def _nca(similarity: Tensor, positive: Tensor, negative: Tensor, *, scale: float, n_nearest: int) -> Tensor:
    nearest = _nearest(similarity, positive | negative, n_nearest)
    own = nearest & positive
    own |= _nearest(similarity, positive, 1) & ~own.any(dim=1, keepdim=True)
    loss = _log_sum_exp(scale * similarity, nearest | own) - _log_sum_exp(scale * similarity, own)
    return loss * own.any(dim=1)


def _nearest(similarity: Tensor, among: Tensor, count: int) -> Tensor:
    """Return the mask (b b) of the `count` most similar among each row's, and of any as similar as the last."""
    hidden = similarity.detach().masked_fill(~among, float("-inf"))
    last = hidden.topk(min(count, len(hidden))).values[:, -1:]
    return among & (hidden >= last)


def _row_sums(values: Tensor, _counts: Tensor) -> Tensor:
    return values.sum(dim=1)


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """Return the log-sum-exp (b) over each row's masked values, 0 over none."""
    found: Tensor = logsumexp(values, keep_mask=mask, add_one=False)
    return found.squeeze(1)
