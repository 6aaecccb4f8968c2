"""Mutual information of classes and clusters."""

from collections import Counter
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from udmlss._checks import as_labels, value_error
from udmlss.types import Labels


def nmi(labels: Labels, clusters: Labels) -> float:
    """Compute the normalized mutual information of classes and clusters, with the arithmetic mean, in 0..1.

    It rises with the number of clusters even by chance, unlike `ami`.

    Args:
        labels: Class of each item; items with a negative label are ignored.
        clusters: Cluster of each item; unassigned items, whose label is negative, are ignored.

    Raises:
        TypeError: Labels or clusters are not integers.
        ValueError: Labels and clusters are not of the same length, or no item has both a class and a cluster.
    """
    classes, found = _as_arrays(labels, clusters)
    return float(normalized_mutual_info_score(classes, found))


def ami(labels: Labels, clusters: Labels) -> float:
    """Compute the adjusted mutual information of classes and clusters: 0 for chance, 1 for equality.

    Arguments and errors are those of `nmi`.

    References:
        Information Theoretic Measures for Clusterings Comparison. Vinh, Epps, Bailey. 2010.
        https://jmlr.org/papers/v11/vinh10a.html
    """
    arrays = _as_arrays(labels, clusters)
    counts = contingency_matrix(*arrays, sparse=True)
    sizes = [np.unique(array, return_counts=True)[1].tolist() for array in arrays]
    is_trivial = [len(each) == 1 for each in sizes], [max(each) == 1 for each in sizes]
    if any(map(all, is_trivial)):
        return 1.0  # both have a single cluster, or in both each item has its own cluster
    expected = _expected_mutual_information(*sizes)
    found = mutual_info_score(None, None, contingency=counts) - expected
    largest = sum(map(entropy, sizes)) / 2 - expected
    return float(found / largest)


def _expected_mutual_information(sizes: list[int], others: list[int]) -> float:
    """Return the expected mutual information of two random clusterings with clusters of these sizes.

    The number of items that two clusters share follows a hypergeometric distribution, which depends on their sizes
    alone. Each pair of sizes is therefore evaluated once, where scikit-learn evaluates each pair of clusters.
    """
    n, expected = sum(sizes), 0.0
    log_factorial = gammaln(np.arange(n + 1) + 1)
    for (a, n_a), (b, n_b) in product(Counter(sizes).items(), Counter(others).items()):
        shared = np.arange(max(1, a + b - n), min(a, b) + 1)
        log_numerator = log_factorial[[a, b, n - a, n - b]].sum() - log_factorial[n]
        log_denominator = sum(log_factorial[rest] for rest in (shared, a - shared, b - shared, n - a - b + shared))
        information = shared / n * np.log(n * shared / (a * b))
        expected += n_a * n_b * float((information * np.exp(log_numerator - log_denominator)).sum())
    return expected


def _as_arrays(labels: Labels, clusters: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    classes = as_labels(labels).cpu()
    found = as_labels(clusters, len(classes), "clusters").cpu()
    has_both = (classes >= 0) & (found >= 0)
    if not has_both.any():
        rule, remedy = "At least one item must have a class and a cluster", "Check the labels"
        raise value_error(rule, f"none of {len(classes)} items", remedy)
    return classes[has_both].numpy(), found[has_both].numpy()
