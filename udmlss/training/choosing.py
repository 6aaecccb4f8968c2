"""Which number of clusters to use, chosen without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from udmlss._checks import value_error
from udmlss.types import FitResult


@dataclass(frozen=True, eq=False)
class ClusterChoice:
    """What trying several numbers of clusters gave.

    Attributes:
        n_clusters: The number with the highest label-free score.
        results: What `fit` returned for each number, in the order tried.
    """

    n_clusters: int
    results: Mapping[int, FitResult]


def choose_n_clusters(train: Callable[[int], FitResult], candidates: Sequence[int]) -> ClusterChoice:
    """Train once with each number of clusters, and say which gave the embeddings that look best without labels.

    Args:
        train: Trains a fresh model with that many clusters, and returns what `fit` returns; a shorter training than
            the last one will do.
        candidates: Numbers of clusters to try, such as 50, 100, 200; the first of equals wins.

    Returns:
        The number chosen, and all results.

    Raises:
        ValueError: Fewer than two candidates or one twice; a training that was interrupted before it was measured.

    Example:
        `choose_n_clusters(lambda k: fit(build(), images, labeler=ClusterPseudoLabeler(k), ...), [50, 100, 200])`
    """
    if len(set(candidates)) != len(candidates) or len(candidates) < 2:  # noqa: PLR2004 (one is no choice)
        raise value_error(
            "`candidates` must be 2 or more different numbers", list(candidates), "Try 50, 100 and 200, say"
        )
    results = {k: train(k) for k in candidates}
    return ClusterChoice(max(results, key=lambda k: _score(k, results[k])), results)


def _score(n_clusters: int, result: FitResult) -> float:
    if result.label_free is None:
        found = f"none with {n_clusters} clusters, ended by {result.ended}"
        raise value_error("Every training must get as far as its first label-free score", found, "Run it again")
    return result.label_free.score
