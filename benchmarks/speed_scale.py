"""Parts at the size of large data sets: sampler, evaluation and k-means."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.cluster import MiniBatchKMeans
from speed_measuring import Cost, Row, clustered, in_process, in_turn, seconds
from speed_others import faiss_k_means
from speed_rounds import objective
from speed_sizes import Sizes
from torch import Tensor

from udmlss import PseudoLabelSampler, evaluate_embeddings
from udmlss.clustering import k_means

P, K = 16, 5
PER_CLASS = 60_502 / 11_316  # images of a class of SOP's test side
GIBIBYTE = 1024.0
MEASURES = {
    "R@1": "precision_at_1",
    "MAP@R": "mean_average_precision_at_r",
    "R-precision": "r_precision",
    "NMI": "NMI",
    "AMI": "AMI",
}


def lines_of_sampler(sizes: Sizes) -> list[Row]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(sizes.sampler_clusters, (sizes.sampler_labels,), generator=draws)
    n_batches = len(labels) // (P * K)
    ours, theirs = in_turn(
        sizes.pairs,
        lambda: seconds(lambda: list(PseudoLabelSampler(labels, P, K, n_batches=n_batches))),
        lambda: seconds(lambda: list(MPerClassSampler(labels, K, P * K, n_batches * P * K))),
    )
    what = f"an epoch of {len(labels):,} labels in {sizes.sampler_clusters:,} clusters"
    note = "as many indices, construction included"
    return [Row("sampler", what, "`MPerClassSampler`", ours, theirs, aim=0.1, note=note)]


def lines_of_evaluate(sizes: Sizes) -> list[Row]:
    """Evaluate in processes of their own, ours and the peer's in turn."""
    given = (sizes.rows, sizes.dimensions)
    costs: list[tuple[Cost, Cost | None]] = []
    for number in range(sizes.evaluations):
        pair: dict[str, Cost] = {}
        for name in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            if name == "ours" or sizes.with_peer:
                pair[name] = in_process(EVALUATIONS[name], *given)
        costs.append((pair["ours"], pair.get("theirs")))
    what = f"`evaluate_embeddings` of {sizes.rows:,} x {sizes.dimensions}"
    memory = [ours.mebibytes for ours, _ in costs]
    return [
        _time_row(what, costs),
        Row(
            "evaluate",
            f"{what}: memory beyond them",
            "2 GiB",
            memory,
            [2 * GIBIBYTE] * len(memory),
            aim=1,
            unit="MiB",
            note=_memory_note([theirs.mebibytes for _, theirs in costs if theirs is not None]),
        ),
    ]


def _memory_note(theirs: list[float]) -> str:
    return f"`AccuracyCalculator` {fmean(theirs):.0f} MiB" if theirs else ""


def _time_row(what: str, costs: list[tuple[Cost, Cost | None]]) -> Row:
    pairs = [(ours, theirs) for ours, theirs in costs if theirs is not None]
    figures: dict[str, Any] = {"ours": costs[0][0].found, "seconds": [ours.seconds for ours, _ in costs]}
    note = f"ours alone: {fmean(figures['seconds']):.1f} s"
    if pairs:
        figures["theirs"] = pairs[0][1].found
        note = ", ".join(f"{name} {figures['ours'][name]:.3f} and {figures['theirs'][name]:.3f}" for name in MEASURES)
    ours, theirs = [ours.seconds for ours, _ in pairs], [theirs.seconds for _, theirs in pairs]
    return Row("evaluate", what, "`AccuracyCalculator`", ours, theirs, aim=1 / 3, note=note, more=figures)


def _made(rows: int, dimensions: int) -> tuple[Tensor, Tensor]:
    n_classes = max(2, round(rows / PER_CLASS))
    return clustered(rows, dimensions, n_classes), torch.arange(rows) % n_classes


def prepare_ours(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    embeddings, labels = _made(rows, dimensions)

    def run() -> dict[str, float]:
        scores = evaluate_embeddings(embeddings, labels, ks=(1,))
        found = (scores.recall_at[1], scores.map_at_r, scores.r_precision, scores.nmi, scores.ami)
        return dict(zip(MEASURES, found, strict=True))

    return run


def prepare_theirs(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    embeddings, labels = _made(rows, dimensions)
    peer = AccuracyCalculator(include=tuple(MEASURES.values()), k="max_bin_count", device=torch.device("cpu"))

    def run() -> dict[str, float]:
        found = peer.get_accuracy(embeddings, labels)
        return {title: found[name] for title, name in MEASURES.items()}

    return run


EVALUATIONS = {"ours": prepare_ours, "theirs": prepare_theirs}


def lines_of_k_means(sizes: Sizes) -> list[Row]:
    """Cluster each shape once by each, in processes of their own: large ones from the same random rows."""
    shapes = [(sizes.sop, GIVEN, OTHERS), (sizes.million, GIVEN, OTHERS), (sizes.cold, OWN, (FAISS,))]
    return [row for shape, start, others in shapes for row in _k_means(shape, start, others)]


def _k_means(shape: tuple[int, ...], start: str, others: Sequence[str]) -> list[Row]:
    costs = {name: in_process(prepare_k_means, name, start, shape) for name in (OURS, *others)}
    n, d, k, iterations = shape
    ours = costs[OURS]
    return [
        Row(
            "k-means",
            f"{OURS} of {n:,} x {d}, k = {k:,}, {iterations} iterations {start}",
            name,
            [ours.seconds],
            [costs[name].seconds],
            note=f"objective {ours.found / costs[name].found:.4f} times; memory beyond the embeddings "
            f"{ours.mebibytes:.0f} and {costs[name].mebibytes:.0f} MiB",
            more={"shape": shape, "ours": vars(ours), "theirs": vars(costs[name])},
        )
        for name in others
    ]


OURS, FAISS, MINI_BATCH = "`k_means`", "faiss called directly", "`MiniBatchKMeans`"
OTHERS = (FAISS, MINI_BATCH)
GIVEN, OWN = "from given rows", "from its own start"


def prepare_k_means(name: str, given: str, shape: tuple[int, ...]) -> Callable[[], Callable[[], float]]:
    """Return a clustering to be run; it returns what computes the objective."""
    n, d, k, iterations = shape
    embeddings = clustered(n, d, k, noise=1.2)
    start = embeddings[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:k]] if given == GIVEN else None

    def run() -> Callable[[], float]:
        return partial(objective, embeddings, _clusterers()[name](embeddings, k, iterations, start))

    return run


def _clusterers() -> dict[str, Callable[[Tensor, int, int, Tensor | None], Tensor]]:
    return {
        OURS: lambda rows, k, count, start: k_means(rows, k, n_iterations=count, start=start),
        FAISS: _by_faiss,
        MINI_BATCH: _by_mini_batches,
    }


def _by_faiss(rows: Tensor, k: int, n_iterations: int, start: Tensor | None) -> Tensor:
    begun = None if start is None else start.numpy()
    return faiss_k_means(rows.numpy(), k, n_iterations, begun, plus_plus=False)[0]


def _by_mini_batches(rows: Tensor, k: int, n_iterations: int, start: Tensor | None) -> Tensor:
    init = "random" if start is None else start.numpy()
    passes = {"max_iter": n_iterations, "max_no_improvement": None, "n_init": 1}
    clusters = MiniBatchKMeans(k, init=init, random_state=0, **passes).fit_predict(rows.numpy())
    return torch.from_numpy(clusters).long()
