"""Definitions of the losses of Deep_Metric, one anchor at a time."""

import math

import torch
from deep_metric_losses import distances, mean, similarities
from pytorch_metric_learning import miners
from torch.nn import functional

from udmlss.losses.deep_metric.mined_loss import SeededMiner


def log_sum_exp(values):
    return math.log(sum(math.exp(value) for value in values)) if values else 0.0


def mined(positives, negatives, epsilon=0.1):
    if not positives or not negatives:
        return [], []
    return (
        [s for s in positives if s - epsilon < max(negatives)],
        [s for s in negatives if s + epsilon > min(positives)],
    )


def naive_contrastive(embeddings, labels, threshold=0.5):
    return mean(sum(1 - s for s in p) + sum(s for s in n if s > threshold) for p, n in similarities(embeddings, labels))


def naive_binomial_deviance(embeddings, labels, *, positive_scale=2, negative_scale=40, base=0.5):
    return mean(
        mean(math.log(1 + math.exp(-positive_scale * (s - base))) for s in p)
        + mean(math.log(1 + math.exp(negative_scale * (s - base))) for s in n)
        for p, n in similarities(embeddings, labels)
    )


def lifted(positives, negatives, positive_scale=2, negative_scale=40):
    positive = 2 / positive_scale * log_sum_exp([-positive_scale * s for s in positives])
    return positive + 2 / negative_scale * log_sum_exp([negative_scale * s for s in negatives])


def naive_lifted_structure(embeddings, labels, **scales):
    return mean(lifted(p, n, **scales) for p, n in similarities(embeddings, labels))


def naive_mined_lifted_structure(embeddings, labels):
    return mean(lifted(*mined(p, n)) for p, n in similarities(embeddings, labels))


def naive_multi_similarity(embeddings, labels, *, positive_scale=2, negative_scale=40, base=0.5, epsilon=0.1):
    total = 0
    for p, n in similarities(embeddings, labels):
        positives, negatives = mined(p, n, epsilon)
        total += math.log(1 + sum(math.exp(-positive_scale * (s - base)) for s in positives)) / positive_scale
        total += math.log(1 + sum(math.exp(negative_scale * (s - base)) for s in negatives)) / negative_scale
    return total / len(labels)


def naive_hard_mining(embeddings, labels, epsilon=0.1):
    total = 0
    for p, n in similarities(embeddings, labels):
        positives, negatives = mined(p, n, epsilon)
        total += mean(1 - s for s in positives) + mean(negatives)
    return total / len(labels)


def naive_nca(embeddings, labels, scale=16, n_nearest=32):
    total = 0
    for p, n in similarities(embeddings, labels):
        if not p:
            continue
        smallest = sorted(p + n, reverse=True)[:n_nearest][-1]
        positives = [s for s in p if s >= smallest] or [max(p)]
        negatives = [s for s in n if s >= smallest]
        own, others = (sum(math.exp(scale * s) for s in values) for values in (positives, negatives))
        total -= math.log(own / (own + others))
    return total / len(labels)


def naive_batch_all(embeddings, labels, margin=0.2):
    return mean(max(0, a - b + margin) for p, n in distances(embeddings, labels) for a in p for b in n)


def naive_batch_hard(embeddings, labels, margin=0.2):
    return mean(max(0, max(p) - min(n) + margin) for p, n in distances(embeddings, labels) if p and n)


def naive_distance_weighted_margin(embeddings, labels, *, margin=0.2, beta=1.2, cutoff=0.5, seed=0):
    """Return the margin loss of the triplets that a miner of the same seed samples."""
    miner = SeededMiner(miners.DistanceWeightedMiner(cutoff=cutoff, nonzero_loss_cutoff=beta + margin), seed=seed)
    rows = functional.normalize(embeddings)
    terms = []
    for anchor, positive, negative in zip(*map(torch.Tensor.tolist, miner(embeddings, labels)), strict=True):
        terms.append(max(0, float((rows[anchor] - rows[positive]).norm()) - beta + margin))
        terms.append(max(0, beta - float((rows[anchor] - rows[negative]).norm()) + margin))
    return mean(term for term in terms if term > 0)


def naive_nearest_positive(embeddings, labels, margin=0.1):
    total = 0.0
    for p, n in distances(embeddings, labels):
        closer = [distance for distance in n if p and distance < min(p) + margin]
        total += min(p) - mean(closer) + margin if closer else 0
    return total / len(labels)


DEFINITIONS = {
    "contrastive": naive_contrastive,
    "binomial_deviance": naive_binomial_deviance,
    "lifted_structure": naive_lifted_structure,
    "lifted_structure(mined=True)": naive_mined_lifted_structure,
    "multi_similarity": naive_multi_similarity,
    "hard_mining": naive_hard_mining,
    "nca": naive_nca,
    "batch_all": naive_batch_all,
    "batch_hard": naive_batch_hard,
    "distance_weighted_margin": naive_distance_weighted_margin,
    "NearestPositiveLoss": naive_nearest_positive,
}
