"""Time and memory of evaluation and of sampling, with pytorch-metric-learning as the baseline."""

from collections.abc import Callable
from functools import partial
from statistics import fmean

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from speed_measurements import Cost, Row, Sizes, cost_in_process, measure_alternately, random_clusters, seconds
from torch import Tensor

from udmlss import PseudoLabelSampler, evaluate_embeddings, metrics

P, K = 16, 5
PER_CLASS = 60_502 / 11_316  # mean number of images per class of SOP's test split
GIBIBYTE = 1024.0
MEASURES = {
    "R@1": "precision_at_1",
    "MAP@R": "mean_average_precision_at_r",
    "R-precision": "r_precision",
    "NMI": "NMI",
    "AMI": "AMI",
}
OURS = "`evaluate_embeddings`"
FAST, DEFAULT = '`AccuracyCalculator(k="max_bin_count")`', "`AccuracyCalculator()`, which ranks all rows"


def lines_of_sampler(sizes: Sizes) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(sizes.sampler_clusters, (sizes.sampler_labels,), generator=generator)
    n_batches = len(labels) // (P * K)
    ours, theirs = measure_alternately(
        sizes.pairs,
        lambda: seconds(lambda: list(PseudoLabelSampler(labels, P, K, n_batches=n_batches))),
        lambda: seconds(lambda: list(MPerClassSampler(labels, K, P * K, n_batches * P * K))),
    )
    measured = f"an epoch of {len(labels):,} labels in {sizes.sampler_clusters:,} clusters"
    note = "the same number of indices, including the construction"
    return [Row("sampler", measured, "`MPerClassSampler`", ours, theirs, aim=0.1, note=note)]


def lines_of_evaluate(sizes: Sizes) -> list[Row]:
    """Compare evaluations in new processes, with the fastest settings of the baseline and with its defaults."""
    rows = _evaluations(sizes, sizes.rows, FAST)
    rows += _evaluations(sizes, sizes.default_rows, DEFAULT) if sizes.default_rows else []
    return [*rows, _search_row(sizes)]


def _search_row(sizes: Sizes) -> Row:
    """Compare an evaluation, in which k-means also runs, with its search alone."""
    ours, searches = (
        [cost.seconds for cost in costs] for costs in _costs(sizes, sizes.rows, prepare_ours, prepare_search)
    )
    measured = f"{OURS} of {sizes.rows:,} x {sizes.dimensions}"
    return Row("evaluate", measured, "its exact search alone", ours, searches, aim=1.25, note="k-means included")


def _evaluations(sizes: Sizes, rows: int, baseline: str) -> list[Row]:
    ours, theirs = _costs(sizes, rows, EVALUATIONS[OURS], EVALUATIONS[baseline])
    measured = f"{OURS} of {rows:,} x {sizes.dimensions}"
    memory, limit = [cost.mebibytes for cost in ours], [2 * GIBIBYTE] * len(ours)
    note = f"{baseline}: {fmean(cost.mebibytes for cost in theirs):.0f} MiB"
    title = f"{measured}: memory beyond the embeddings"
    return [
        _time_row(measured, ours, theirs, baseline),
        Row("evaluate", title, "2 GiB", memory, limit, aim=1, unit="MiB", note=note),
    ]


def _costs(sizes: Sizes, rows: int, *prepares: Callable[..., Callable[[], object]]) -> list[list[Cost]]:
    """Return the costs of each function in new processes, which are started in alternating order."""
    found: list[list[Cost]] = [[] for _ in prepares]
    for number in range(sizes.evaluations):
        kinds = list(zip(prepares, found, strict=True))
        for prepare, costs in reversed(kinds) if number % 2 else kinds:
            costs.append(cost_in_process(prepare, rows, sizes.dimensions))
    return found


def _time_row(measured: str, ours: list[Cost], theirs: list[Cost], baseline: str) -> Row:
    times = [cost.seconds for cost in ours]
    mine, other = ours[0].found, theirs[0].found
    note = ", ".join(f"{name} {mine[name]:.3f} and {other[name]:.3f}" for name in MEASURES)
    return Row("evaluate", measured, baseline, times, [cost.seconds for cost in theirs], aim=1 / 3, note=note)


def _embeddings(rows: int, dimensions: int) -> tuple[Tensor, Tensor]:
    n_classes = max(2, round(rows / PER_CLASS))
    return random_clusters(rows, dimensions, n_classes), torch.arange(rows) % n_classes


def prepare_ours(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    embeddings, labels = _embeddings(rows, dimensions)

    def evaluate() -> dict[str, float]:
        scores = evaluate_embeddings(embeddings, labels, ks=1)
        found = (scores.recall_at[1], scores.map_at_r, scores.r_precision, scores.nmi, scores.ami)
        return dict(zip(MEASURES, found, strict=True))

    return evaluate


def prepare_search(rows: int, dimensions: int) -> Callable[[], object]:
    embeddings, labels = _embeddings(rows, dimensions)
    return partial(metrics.retrieval, embeddings, labels, ks=1)


def prepare_fast(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    return _prepare_baseline(rows, dimensions, "max_bin_count")


def prepare_default(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    return _prepare_baseline(rows, dimensions, None)


def _prepare_baseline(rows: int, dimensions: int, k: str | None) -> Callable[[], dict[str, float]]:
    embeddings, labels = _embeddings(rows, dimensions)
    calculator = AccuracyCalculator(include=tuple(MEASURES.values()), k=k, device=torch.device("cpu"))

    def evaluate() -> dict[str, float]:
        found = calculator.get_accuracy(embeddings, labels)
        return {title: found[name] for title, name in MEASURES.items()}

    return evaluate


EVALUATIONS = {OURS: prepare_ours, FAST: prepare_fast, DEFAULT: prepare_default}
