"""Time and memory of clustering: a round, warm starts, k-means at the size of large datasets, and growth with n."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import numpy as np
import torch
from speed_baselines import faiss_k_means
from speed_measurements import Cost, Row, Sizes, cost_in_process, measure_alternately, now, random_clusters, seconds
from speed_training import build_criterion, build_network, images_of, n_clusters
from torch import Tensor
from torch.nn import functional

from udmlss import ClusterPseudoLabeler, EmbeddingModel, Epochs, PseudoLabelSampler, embed, fit, label_free_scores
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.data import glyphs
from udmlss.types import PseudoLabels

ITERATIONS = 25  # the default of `k_means` and of faiss
VIEWS = 1000  # images of which a view is scored, as in `fit`
TOLERANCE = 1.001  # an objective within 0.1 % of the final one counts as reached
GROWTH_CLUSTERS, GROWTH_ITERATIONS, GROWTH_DIMENSIONS = 100, 10, 64
GROWTH_CHANGE = 0.5  # length of the change of an embedding from one round to the next


def lines_of_round(sizes: Sizes) -> list[Row]:
    """Measure a second round, which starts from the clusters of the first and matches ids.

    The first round clusters the embeddings before an epoch of training, and the second those after it.
    """
    images = glyphs("train").images[: sizes.round_images]
    model, k = EmbeddingModel(*build_network(sizes)).eval(), max(16, len(images) // 10)
    embeddings = embed(model, images)
    labeler = ClusterPseudoLabeler(k)
    pseudo_labels = labeler.label(embeddings)
    _train_for_an_epoch(model, images, pseudo_labels.labels)
    embeddings = embed(model.eval(), images)
    start = cluster_means(embeddings, pseudo_labels.labels, k)
    indices = torch.randperm(len(images))[:VIEWS]

    def run_round(labeler: ClusterPseudoLabeler) -> None:
        pseudo_labels = labeler.label(embed(model, images))
        next(iter(PseudoLabelSampler(pseudo_labels.labels)))

    def run_parts() -> None:
        with torch.inference_mode():
            rows = torch.cat([model(part) for part in images.split(128)])
        k_means(rows, k, max_iter=ITERATIONS, start=start)

    def score() -> None:
        label_free_scores(embeddings, embed(model, images[indices]), indices)

    ours, theirs, scored = measure_alternately(
        sizes.pairs,
        lambda: seconds(partial(run_round, deepcopy(labeler))),
        partial(seconds, run_parts),
        partial(seconds, score),
    )
    measured, baseline = "a round: embed, cluster, match ids, new sampler", "its forward passes and `k_means`"
    note = f"{len(images)} images, k = {k}, at most {ITERATIONS} iterations from the clusters of the previous round"
    score_note = f"{len(indices)} views are embedded and scored"
    return [
        Row("round", measured, baseline, ours, theirs, aim=1.05, note=note),
        Row("round", "label-free scores", "the round", scored, ours, note=score_note),
    ]


def _train_for_an_epoch(model: EmbeddingModel, images: Tensor, labels: Tensor) -> None:
    fit(
        model,
        images,
        labeler=lambda _embeddings: labels,
        criterion=build_criterion(),
        clusters_per_batch=16,
        views=1,
        max_steps=Epochs(1),
        relabel_every=Epochs(1),
        freeze_batch_norm=False,
        average_weights=False,
        progress=False,
    )


def lines_of_warm_start(sizes: Sizes) -> list[Row]:
    """Cluster the embeddings of a training's rounds from the clusters of the previous round, and from scratch."""
    k = n_clusters(sizes)
    warm, cold, warm_seconds, cold_seconds, final = [], [], [], [], []
    for (_, previous), (embeddings, _) in pairwise(_training_rounds(sizes, k)):
        start = cluster_means(embeddings, previous.labels, k)
        target = objective(embeddings, k_means(embeddings, k, max_iter=ITERATIONS))
        final.append(objective(embeddings, k_means(embeddings, k, max_iter=ITERATIONS, start=start)) / target)
        counts = [_iterations(embeddings, k, TOLERANCE * target, centers) for centers in (start, None)]
        runs = [
            partial(seconds, partial(k_means, embeddings, k, max_iter=count, start=centers))
            for count, centers in zip(counts, (start, None), strict=True)
        ]
        times = measure_alternately(sizes.pairs, *runs)
        for values, value in zip((warm, cold), counts, strict=True):
            values.append(value)
        for values, measured in zip((warm_seconds, cold_seconds), times, strict=True):
            values.append(median(measured))
    note = f"until within {TOLERANCE - 1:.1%} of the objective after {ITERATIONS} iterations from scratch"
    final_note = f"after {ITERATIONS} iterations, the objective is {fmean(final):.4f} times that from scratch; k = {k}"
    iterations, times, baseline = "iterations from the previous clusters", "their time", "from scratch"
    return [
        Row("warm-start", iterations, baseline, warm, cold, aim=0.5, unit="iterations", note=note),
        Row("warm-start", times, baseline, warm_seconds, cold_seconds, aim=0.5, note=final_note),
    ]


class _RecordingLabeler(ClusterPseudoLabeler):
    """A labeler that records the embeddings and clusters of every round."""

    def label(self, embeddings: Tensor) -> PseudoLabels:
        self.rounds = [*getattr(self, "rounds", []), (embeddings, super().label(embeddings))]
        return self.rounds[-1][1]


def _training_rounds(sizes: Sizes, k: int) -> list[tuple[Tensor, PseudoLabels]]:
    """Return embeddings and clusters of successive rounds of a training from scratch on glyphs."""
    labeler = _RecordingLabeler(k)
    fit(
        EmbeddingModel(*build_network(sizes)),
        images_of(sizes),
        labeler=labeler,
        criterion=build_criterion(),
        clusters_per_batch=16,
        views=1,
        max_steps=3 * sizes.steps,
        relabel_every=max(1, sizes.steps // 2),
        cluster_on="embeddings",
        freeze_batch_norm=False,
        average_weights=False,
        progress=False,
    )
    return labeler.rounds


def _iterations(embeddings: Tensor, k: int, target: float, start: Tensor | None) -> int:
    """Return the number of iterations until the objective reaches a target, at most `ITERATIONS`."""
    for count in range(1, ITERATIONS):
        if objective(embeddings, k_means(embeddings, k, max_iter=count, start=start)) <= target:
            return count
    return ITERATIONS


def objective(embeddings: Tensor, labels: Tensor) -> float:
    """Return the sum of squared distances to the cluster means."""
    means = cluster_means(embeddings, labels, int(labels.max()) + 1)
    return sum(
        float((part - means[clusters]).square().sum(dtype=torch.float64))
        for part, clusters in zip(embeddings.split(8192), labels.split(8192), strict=True)
    )


K_MEANS, FAISS = "`k_means`", "faiss"
GIVEN, OWN = "from given centers", "from its own initial centers"


def lines_of_k_means(sizes: Sizes) -> list[Row]:
    """Cluster embeddings of each size once per implementation, in new processes."""
    return [_k_means(*each) for each in ((sizes.sop, GIVEN, 0.25), (sizes.million, GIVEN, 0.8), (sizes.cold, OWN))]


def _k_means(shape: tuple[int, ...], start: str, aim: float | None = None) -> Row:
    ours, theirs = (cost_in_process(prepare_k_means, name, start, shape) for name in (K_MEANS, FAISS))
    n, d, k, iterations = shape
    return Row(
        "k-means",
        f"{K_MEANS} of {n:,} x {d}, k = {k:,}, at most {iterations} iterations {start}",
        FAISS,
        [ours.seconds],
        [theirs.seconds],
        aim=aim,
        note=f"faiss does not stop when no label changes; {ours.found / theirs.found:.4f} times the objective; memory "
        f"beyond the embeddings {ours.mebibytes:.0f} and {theirs.mebibytes:.0f} MiB",
        more={"shape": shape, "ours": vars(ours), "theirs": vars(theirs)},
    )


def prepare_k_means(name: str, start: str, shape: tuple[int, ...]) -> Callable[[], Callable[[], float]]:
    """Return a function that clusters, and returns a function that computes the objective."""
    n, d, k, iterations = shape
    embeddings = random_clusters(n, d, k, noise=1.2)
    sampled = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:k]
    centers = embeddings[sampled] if start == GIVEN else None
    implementations = {K_MEANS: _k_means_of_udmlss, FAISS: _k_means_of_faiss}
    return lambda: partial(objective, embeddings, implementations[name](embeddings, k, iterations, centers))


def _k_means_of_udmlss(rows: Tensor, k: int, max_iter: int, start: Tensor | None) -> Tensor:
    return k_means(rows, k, max_iter=max_iter, start=start)


def _k_means_of_faiss(rows: Tensor, k: int, max_iter: int, start: Tensor | None) -> Tensor:
    centers = None if start is None else start.numpy()
    return faiss_k_means(rows.numpy(), k, max_iter, centers, plus_plus=False)


def lines_of_growth(sizes: Sizes) -> list[Row]:
    """Measure a second round, whose embeddings have changed, for each number of embeddings, in new processes."""
    costs = {n: cost_in_process(prepare_growth, n) for n in sizes.growth}
    powers = exponents(costs)
    listed = ", ".join(f"{part} {power:.2f}" for part, power in powers.items())
    return [
        Row(
            "growth",
            f"a round of {more:,} embeddings",
            f"a round of {less:,}",
            [costs[more].seconds],
            [costs[less].seconds],
            note=f"{more / less:g} times the embeddings; exponents over all sizes: {listed}",
            more={"sizes": {str(n): vars(costs[n]) for n in sizes.growth}, "exponents": powers},
        )
        for less, more in pairwise(sizes.growth)
    ]


def prepare_growth(n: int) -> Callable[[], dict[str, float]]:
    """Return a function that clusters, matches ids, samples and scores, and returns the seconds of each part.

    The previous round clustered other embeddings of the same images, as those before further training.
    """
    embeddings = random_clusters(n, GROWTH_DIMENSIONS, 2 * GROWTH_CLUSTERS, noise=1.0)
    labeler = ClusterPseudoLabeler(GROWTH_CLUSTERS, max_iter=GROWTH_ITERATIONS)
    noise = torch.randn(n, GROWTH_DIMENSIONS, generator=torch.Generator().manual_seed(1)) / GROWTH_DIMENSIONS**0.5
    labeler.label(functional.normalize(embeddings + GROWTH_CHANGE * noise))
    del noise
    indices = torch.randperm(n)[:VIEWS]
    views = functional.normalize(embeddings[indices] + 0.02 * torch.randn(len(indices), GROWTH_DIMENSIONS))
    label_free_scores(embeddings, views, indices)  # the first call includes the initialization of libraries

    def run_round() -> dict[str, float]:
        started = now()
        pseudo_labels = labeler.label(embeddings)
        labeled = now()
        next(iter(PseudoLabelSampler(pseudo_labels.labels)))
        sampled = now()
        label_free_scores(embeddings, views, indices)
        return {"labels": labeled - started, "sampler": sampled - labeled, "label-free scores": now() - sampled}

    return run_round


def exponents(costs: dict[int, Cost]) -> dict[str, float]:
    """Return for each cost the power of n with which it grows, by a line through the logarithms."""
    columns = {"time": [cost.seconds for cost in costs.values()], "memory": [cost.mebibytes for cost in costs.values()]}
    parts = next(iter(costs.values())).found
    columns |= {part: [cost.found[part] for cost in costs.values()] for part in parts}
    return {part: float(np.polyfit(np.log(list(costs)), np.log(values), 1)[0]) for part, values in columns.items()}
