"""The losses of Deep_Metric by name, batches to test them with, and the similarities that their definitions use."""

import torch
from torch.nn import functional

from udmlss.losses import ClusterNCALoss, NearestPositiveLoss, deep_metric

LOSSES = {
    "contrastive": deep_metric.contrastive,
    "binomial_deviance": deep_metric.binomial_deviance,
    "lifted_structure": deep_metric.lifted_structure,
    "lifted_structure(mined=True)": lambda: deep_metric.lifted_structure(mined=True),
    "multi_similarity": deep_metric.multi_similarity,
    "hard_mining": deep_metric.hard_mining,
    "nca": deep_metric.nca,
    "batch_all": deep_metric.batch_all,
    "batch_hard": deep_metric.batch_hard,
    "distance_weighted_margin": deep_metric.distance_weighted_margin,
    "NearestPositiveLoss": NearestPositiveLoss,
    "ClusterNCALoss": ClusterNCALoss,
}


def overlapping_clusters(sizes, d=6, noise=0.4):
    """Return float64 unit embeddings of overlapping clusters of the given sizes, in random order, with their labels."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes))]
    centers = functional.normalize(torch.randn(len(sizes), d, dtype=torch.float64))
    return functional.normalize(centers[labels] + noise * torch.randn(len(labels), d, dtype=torch.float64)), labels


def _duplicates():
    embeddings, labels = overlapping_clusters([3, 3])
    return embeddings.repeat(2, 1), labels.repeat(2)


def _different_lengths():
    embeddings, labels = overlapping_clusters([4, 4])
    return embeddings * 100 * torch.rand(8, 1, dtype=torch.float64), labels


def _some_zero_vectors():
    embeddings, _ = overlapping_clusters([3, 3])
    return embeddings * (torch.arange(6) > 1)[:, None], torch.arange(2).repeat(3)


BATCHES = {
    "equal sizes": lambda: overlapping_clusters([4, 4, 4, 4]),
    "more rows than NCA uses": lambda: overlapping_clusters([5] * 10, noise=1.5),
    "unequal sizes": lambda: overlapping_clusters([2, 5, 3]),
    "some single rows": lambda: overlapping_clusters([1, 4, 1, 3]),
    "two clusters": lambda: overlapping_clusters([3, 3]),
    "compact clusters": lambda: overlapping_clusters([4, 4, 4], d=32, noise=0.01),
    "mixed clusters": lambda: overlapping_clusters([4, 4, 4], noise=5),
    "one dimension": lambda: overlapping_clusters([3, 3], d=1),
    "two dimensions": lambda: overlapping_clusters([3, 3, 3], d=2),
    "different lengths": _different_lengths,
    "one cluster": lambda: overlapping_clusters([5]),
    "only single rows": lambda: overlapping_clusters([1] * 6),
    "one row": lambda: overlapping_clusters([1]),
    "duplicates": _duplicates,
    "duplicates in different clusters": lambda: (_duplicates()[0], torch.arange(4).repeat(3)),
    "equal rows": lambda: (torch.ones(6, 4, dtype=torch.float64), torch.arange(2).repeat(3)),
    "zero vectors": lambda: (torch.zeros(6, 4, dtype=torch.float64), torch.arange(2).repeat(3)),
    "some zero vectors": _some_zero_vectors,
}


def _pairs(embeddings, labels, measure):
    rows = [row / row.norm().clamp(min=1e-12) for row in embeddings]
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        yield (
            [float(measure(rows[i], rows[j])) for j in others if labels[j] == labels[i]],
            [float(measure(rows[i], rows[j])) for j in others if labels[j] != labels[i]],
        )


def similarities(embeddings, labels):
    """Yield the cosine similarities of each anchor to its positives and to its negatives."""
    yield from _pairs(embeddings, labels, torch.dot)


def distances(embeddings, labels):
    """Yield the Euclidean distances, at unit length, of each anchor to its positives and to its negatives."""
    yield from _pairs(embeddings, labels, lambda a, b: (a - b).norm())


def mean(values):
    """Return the mean, or 0 without values."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0
