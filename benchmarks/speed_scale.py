"""Parts at the size of large data sets: sampler, evaluation and k-means."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

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
from udmlss.clustering.kmeans import k_means

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
    """Evaluate in processes of their own, in turn with the peer as fast as it can be, and as it comes."""
    rows = _evaluations(sizes, sizes.rows, FAST if sizes.with_peer else None)
    return rows + (_evaluations(sizes, sizes.default_rows, DEFAULT) if sizes.default_rows else [])


def _evaluations(sizes: Sizes, rows: int, peer: str | None) -> list[Row]:
    ours: list[Cost] = []
    theirs: list[Cost] = []
    for number in range(sizes.evaluations):
        kinds = [(OURS, ours), (peer, theirs)]
        for name, costs in reversed(kinds) if number % 2 else kinds:
            if name is not None:
                costs.append(in_process(EVALUATIONS[name], rows, sizes.dimensions))
    what = f"`evaluate_embeddings` of {rows:,} x {sizes.dimensions}"
    memory, limit = [cost.mebibytes for cost in ours], [2 * GIBIBYTE] * len(ours)
    beside = f"{peer} {fmean(cost.mebibytes for cost in theirs):.0f} MiB" if theirs else ""
    return [
        _time_row(what, ours, theirs, peer or FAST),
        Row("evaluate", f"{what}: memory beyond them", "2 GiB", memory, limit, aim=1, unit="MiB", note=beside),
    ]


def _time_row(what: str, ours: list[Cost], theirs: list[Cost], peer: str) -> Row:
    times = [cost.seconds for cost in ours]
    if not theirs:
        note = f"ours alone: {fmean(times):.1f} s"
        return Row("evaluate", what, peer, [], [], aim=1 / 3, note=note, more={"ours": [vars(cost) for cost in ours]})
    mine, other = ours[0].found, theirs[0].found
    note = ", ".join(f"{name} {mine[name]:.3f} and {other[name]:.3f}" for name in MEASURES)
    return Row("evaluate", what, peer, times, [cost.seconds for cost in theirs], aim=1 / 3, note=note)


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


def prepare_fast(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    return _prepare_peer(rows, dimensions, "max_bin_count")


def prepare_default(rows: int, dimensions: int) -> Callable[[], dict[str, float]]:
    return _prepare_peer(rows, dimensions, None)


def _prepare_peer(rows: int, dimensions: int, k: str | None) -> Callable[[], dict[str, float]]:
    embeddings, labels = _made(rows, dimensions)
    peer = AccuracyCalculator(include=tuple(MEASURES.values()), k=k, device=torch.device("cpu"))

    def run() -> dict[str, float]:
        found = peer.get_accuracy(embeddings, labels)
        return {title: found[name] for title, name in MEASURES.items()}

    return run


OURS, FAST, DEFAULT = "ours", '`AccuracyCalculator(k="max_bin_count")`', "`AccuracyCalculator()`, which ranks all rows"
EVALUATIONS = {OURS: prepare_ours, FAST: prepare_fast, DEFAULT: prepare_default}


def lines_of_k_means(sizes: Sizes) -> list[Row]:
    """Cluster each shape once by each, in processes of their own: large ones from the same random rows."""
    shapes = [(sizes.sop, GIVEN, OTHERS), (sizes.million, GIVEN, OTHERS), (sizes.cold, OWN, (FAISS,))]
    return [row for shape, start, others in shapes for row in _k_means(shape, start, others)]


def _k_means(shape: tuple[int, ...], start: str, others: Sequence[str]) -> list[Row]:
    costs = {name: in_process(prepare_k_means, name, start, shape) for name in (K_MEANS, *others)}
    n, d, k, iterations = shape
    ours = costs[K_MEANS]
    return [
        Row(
            "k-means",
            f"{K_MEANS} of {n:,} x {d}, k = {k:,}, {iterations} iterations {start}",
            name,
            [ours.seconds],
            [costs[name].seconds],
            note=f"objective {ours.found / costs[name].found:.4f} times; memory beyond the embeddings "
            f"{ours.mebibytes:.0f} and {costs[name].mebibytes:.0f} MiB",
            more={"shape": shape, "ours": vars(ours), "theirs": vars(costs[name])},
        )
        for name in others
    ]


K_MEANS, FAISS, MINI_BATCH = "`k_means`", "faiss called directly", "`MiniBatchKMeans`"
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
        K_MEANS: lambda rows, k, count, start: k_means(rows, k, max_iter=count, start=start),
        FAISS: _by_faiss,
        MINI_BATCH: _by_mini_batches,
    }


def _by_faiss(rows: Tensor, k: int, max_iter: int, start: Tensor | None) -> Tensor:
    begun = None if start is None else start.numpy()
    return faiss_k_means(rows.numpy(), k, max_iter, begun, plus_plus=False)[0]


def _by_mini_batches(rows: Tensor, k: int, max_iter: int, start: Tensor | None) -> Tensor:
    init = "random" if start is None else start.numpy()
    passes = {"max_iter": max_iter, "max_no_improvement": None, "n_init": 1}
    clusters = MiniBatchKMeans(k, init=init, random_state=0, **passes).fit_predict(rows.numpy())
    return torch.from_numpy(clusters).long()
