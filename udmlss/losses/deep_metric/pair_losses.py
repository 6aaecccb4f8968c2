"""Pair losses of Deep_Metric on cosine similarities."""

from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner, PairMarginMiner
from pytorch_metric_learning.reducers import PerAnchorReducer
from pytorch_metric_learning.utils.loss_and_miner_utils import logsumexp
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_integer, check_number
from udmlss.losses.deep_metric.mined_loss import AnchorLoss, MinedLoss, all_pairs


def contrastive(*, threshold: float = 0.5) -> nn.Module:
    r"""Build the contrastive loss of all positives and of negatives above a threshold.

    $$\frac1n\sum_i\Big[\sum_{j\in P_i}(1-S_{ij})+\sum_{j\in N_i,\,S_{ij}>t}S_{ij}\Big]$$

    Args:
        threshold: Cosine similarity t, at least 0.

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
    reducer = PerAnchorReducer(aggregation_func=_row_sums)  # PML's default is the mean of each row
    return MinedLoss(
        ContrastiveLoss(pos_margin=1, neg_margin=0, distance=CosineSimilarity(), reducer=reducer),
        PairMarginMiner(pos_margin=1, neg_margin=float(threshold), distance=CosineSimilarity()),
    )


def binomial_deviance(*, positive_scale: float = 2, negative_scale: float = 40, base: float = 0.5) -> nn.Module:
    r"""Build the binomial deviance loss, a softplus of the scaled similarity of each pair.

    $$\frac1n\sum_i\Big[\operatorname*{mean}_{j\in P_i}\log(1+e^{-\beta(S_{ij}-\lambda)})
    +\operatorname*{mean}_{j\in N_i}\log(1+e^{\alpha(S_{ij}-\lambda)})\Big]$$

    PML does not have this loss; its distance and pairs are used.

    Args:
        positive_scale: Scale beta, above 0.
        negative_scale: Scale alpha, above 0.
        base: Cosine similarity lambda, in -1..1.

    Raises:
        ValueError: A scale is not above 0, or `base` is outside -1..1.

    References:
        Deep Metric Learning for Practical Person Re-Identification. Yi, Lei, Li. 2014.
        https://arxiv.org/abs/1407.4979

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.binomial_deviance()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.3133)
    """
    scales = _check_scales(positive_scale, negative_scale)
    check_number("base", base, -1, 1)
    return AnchorLoss(_binomial_deviance, all_pairs, **scales, base=float(base))


def lifted_structure(*, positive_scale: float = 2, negative_scale: float = 40, mined: bool = False) -> nn.Module:
    r"""Build the lifted structure loss, a log-sum-exp over the positives and over the negatives of each anchor.

    $$\frac1n\sum_i\Big[\frac2\beta\log\sum_{j\in P_i}e^{-\beta S_{ij}}
    +\frac2\alpha\log\sum_{j\in N_i}e^{\alpha S_{ij}}\Big]$$

    This is the modified form of Deep_Metric. PML's `GeneralizedLiftedStructureLoss` does not have scales and clips the
    loss of each anchor at 0, so only its distance, pairs, miner and log-sum-exp are used.

    Args:
        positive_scale: Scale beta, above 0.
        negative_scale: Scale alpha, above 0.
        mined: Whether to use only the pairs that the miner of `multi_similarity` selects.

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
    scales = _check_scales(positive_scale, negative_scale)
    return AnchorLoss(_lifted_structure, MultiSimilarityMiner(0.1) if mined else all_pairs, **scales)


def multi_similarity(
    *, positive_scale: float = 2, negative_scale: float = 40, base: float = 0.5, epsilon: float = 0.1
) -> nn.Module:
    r"""Build the multi-similarity loss with its miner, which is the metric loss of UDML-SS.

    $$\frac1n\sum_i\Big[\frac1\beta\log\big(1+\sum_{j\in P_i'}e^{-\beta(S_{ij}-\lambda)}\big)
    +\frac1\alpha\log\big(1+\sum_{j\in N_i'}e^{\alpha(S_{ij}-\lambda)}\big)\Big]$$

    $P_i'$ are the positives less similar than the most similar negative plus epsilon, and $N_i'$ are the negatives more
    similar than the least similar positive minus epsilon.

    Args:
        positive_scale: Scale beta, above 0, which PML calls alpha.
        negative_scale: Scale alpha, above 0, which PML calls beta.
        base: Cosine similarity lambda, in -1..1.
        epsilon: Tolerance of the miner, at least 0. The default is the published value.

    Raises:
        ValueError: A scale is not above 0, `base` is outside -1..1, or `epsilon` is negative.

    References:
        Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning. Wang, Han, Huang, Dong, Scott. 2019.
        https://arxiv.org/abs/1904.06627

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.multi_similarity()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6566)
    """
    scales = _check_scales(positive_scale, negative_scale)
    check_number("base", base, -1, 1)
    check_number("epsilon", epsilon, 0)
    loss = MultiSimilarityLoss(alpha=scales["positive_scale"], beta=scales["negative_scale"], base=float(base))
    return MinedLoss(loss, MultiSimilarityMiner(float(epsilon)))


def hard_mining(*, epsilon: float = 0.1) -> nn.Module:
    r"""Build the hard mining loss, the mean similarities of the pairs that the miner of `multi_similarity` selects.

    $$\frac1n\sum_i\Big[\operatorname*{mean}_{j\in P_i'}(1-S_{ij})+\operatorname*{mean}_{j\in N_i'}S_{ij}\Big]$$

    PML's `ContrastiveLoss` would clip similarities below 0, so only its distance and miner are used.

    Args:
        epsilon: Tolerance of the miner, at least 0.

    Raises:
        ValueError: `epsilon` is negative.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.hard_mining()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.)
    """
    check_number("epsilon", epsilon, 0)
    return AnchorLoss(_hard_mining, MultiSimilarityMiner(float(epsilon)))


def nca(*, scale: float = 16, n_nearest: int = 32) -> nn.Module:
    r"""Build the loss of neighborhood component analysis (NCA) over the K nearest embeddings of each anchor.

    $$-\frac1n\sum_i\log\frac{\sum_{j\in K_i\cap P_i}e^{\alpha S_{ij}}}{\sum_{j\in K_i}e^{\alpha S_{ij}}}$$

    $K_i$ are the K embeddings most similar to the anchor, including ties with the last one. If none of them is a
    positive, the most similar positive is added. The loss of an anchor without positives is zero.

    PML's `NCALoss` uses the whole batch and skips anchors whose probability of their own cluster is zero; only its
    distance, pairs and log-sum-exp are used.

    Args:
        scale: Scale alpha, above 0.
        n_nearest: Number K, at least 1. From n - 1 on, the whole batch is used.

    Raises:
        ValueError: `scale` is not above 0, or `n_nearest` is below 1.

    References:
        Learning a Nonlinear Embedding by Preserving Class Neighbourhood Structure. Salakhutdinov, Hinton. 2007.
        https://proceedings.mlr.press/v2/salakhutdinov07a.html. The code of Deep_Metric does not run and selects the K
        least similar embeddings; this function follows its comments.

    Example:
        >>> from udmlss.losses import deep_metric
        >>> deep_metric.nca()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """
    check_number("scale", scale, above=0)
    check_integer("n_nearest", n_nearest, 1)
    return AnchorLoss(_nca, all_pairs, scale=float(scale), n_nearest=int(n_nearest))


def _check_scales(positive_scale: float, negative_scale: float) -> dict[str, float]:
    check_number("positive_scale", positive_scale, above=0)
    check_number("negative_scale", negative_scale, above=0)
    return {"positive_scale": float(positive_scale), "negative_scale": float(negative_scale)}


def _binomial_deviance(
    similarity: Tensor, positive: Tensor, negative: Tensor, *, positive_scale: float, negative_scale: float, base: float
) -> Tensor:
    positive_terms = functional.softplus(-positive_scale * (similarity - base))
    negative_terms = functional.softplus(negative_scale * (similarity - base))
    return _row_means(positive_terms, positive) + _row_means(negative_terms, negative)


def _lifted_structure(
    similarity: Tensor, positive: Tensor, negative: Tensor, *, positive_scale: float, negative_scale: float
) -> Tensor:
    positive_terms = _log_sum_exp(-positive_scale * similarity, positive)
    negative_terms = _log_sum_exp(negative_scale * similarity, negative)
    return 2 / positive_scale * positive_terms + 2 / negative_scale * negative_terms


def _hard_mining(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return _row_means(1 - similarity, positive) + _row_means(similarity, negative)


def _nca(similarity: Tensor, positive: Tensor, negative: Tensor, *, scale: float, n_nearest: int) -> Tensor:
    nearest = _nearest_mask(similarity, positive | negative, n_nearest)
    own = nearest & positive
    own |= _nearest_mask(similarity, positive, 1) & ~own.any(dim=1, keepdim=True)
    loss = _log_sum_exp(scale * similarity, nearest | own) - _log_sum_exp(scale * similarity, own)
    return loss * own.any(dim=1)


def _nearest_mask(similarity: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the mask (b, b) of the `count` most similar candidates of each row, including ties with the last one."""
    masked = similarity.detach().masked_fill(~candidates, float("-inf"))
    smallest = masked.topk(min(count, len(masked))).values[:, -1:]
    return candidates & (masked >= smallest)


def _row_sums(values: Tensor, _counts: Tensor) -> Tensor:
    return values.sum(dim=1)


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """Return the log-sum-exp (b,) of the masked values of each row, or 0 for a row without any."""
    result: Tensor = logsumexp(values, keep_mask=mask, add_one=False)
    return result.squeeze(1)
