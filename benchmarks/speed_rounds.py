"""What a round costs beside its steps: over its parts, started warm or cold, and as the images grow in number."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import numpy as np
import torch
from speed_measuring import Cost, Row, clustered, in_process, in_turn, now, seconds
from speed_others import PROBE, faiss_k_means
from speed_sizes import Sizes
from speed_training import build, clusters_of, criterion_of, images_of
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset, TensorDataset

from udmlss import ClusterPseudoLabeler, EmbeddingModel, PseudoLabelSampler, embed, fit, label_free_scores
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.data import glyphs
from udmlss.types import PseudoLabels

ITERATIONS = 25  # `k_means`'s and faiss's default
NEAR = 1.001  # an objective this close to the cold start's end has reached it
GROWTH_CLUSTERS, GROWTH_ITERATIONS, GROWTH_DIMENSIONS = 100, 10, 64


def lines_of_round(sizes: Sizes) -> list[Row]:
    """Measure the second round, which starts warm and matches ids."""
    images = glyphs("train").images[: sizes.round_images]
    model = EmbeddingModel(*build(sizes)).eval()
    k = max(16, len(images) // 10)
    embeddings = embed(model, images)
    labeler = ClusterPseudoLabeler(k)
    start = cluster_means(embeddings, labeler.label(embeddings).labels, k).numpy()
    probe = torch.randperm(len(images))[:PROBE]

    def a_round(labeler: ClusterPseudoLabeler) -> None:
        pseudo = labeler.label(embed(model, images))
        next(iter(PseudoLabelSampler(pseudo.labels)))

    def its_parts() -> None:
        with torch.inference_mode():
            found = torch.cat([model(part) for part in images.split(128)])
        faiss_k_means(found.numpy(), k, ITERATIONS, start)

    def judging() -> None:
        label_free_scores(embeddings, embed(model, Subset(TensorDataset(images), probe.tolist())), probe)

    ours, theirs, judged = in_turn(
        sizes.pairs,
        lambda: seconds(partial(a_round, deepcopy(labeler))),
        partial(seconds, its_parts),
        partial(seconds, judging),
    )
    parts = "its forward passes and faiss k-means"
    note = f"{len(images)} images, k = {k}, {ITERATIONS} iterations from the last round's means"
    also = f"{len(probe)} second views embedded and judged"
    return [
        Row("round", "a round: embed, cluster, match ids, new sampler", parts, ours, theirs, aim=1.05, note=note),
        Row("round", "judging without labels, on top", "that round", judged, ours, note=also),
    ]


def lines_of_warm_start(sizes: Sizes) -> list[Row]:
    """Cluster the embeddings of real rounds cold, and from the clusters of the round before."""
    k = clusters_of(sizes)
    warm, cold, warm_seconds, cold_seconds, final = [], [], [], [], []
    for (_, last), (embeddings, _) in pairwise(_real_rounds(sizes, k)):
        start = cluster_means(embeddings, last.labels, k)
        target = objective(embeddings, k_means(embeddings, k, max_iter=ITERATIONS))
        final.append(objective(embeddings, k_means(embeddings, k, max_iter=ITERATIONS, start=start)) / target)
        counts = [_iterations(embeddings, k, NEAR * target, begun) for begun in (start, None)]
        runs = [
            partial(seconds, partial(k_means, embeddings, k, max_iter=count, start=begun))
            for count, begun in zip(counts, (start, None), strict=True)
        ]
        took = in_turn(sizes.pairs, *runs)
        for values, value in zip((warm, cold), counts, strict=True):
            values.append(value)
        for values, measured in zip((warm_seconds, cold_seconds), took, strict=True):
            values.append(median(measured))
    reach = f"to within {NEAR - 1:.1%} of the cold start's objective after {ITERATIONS} iterations"
    ends = f"after {ITERATIONS} iterations each, warm ends at {fmean(final):.4f} times the cold objective"
    iterations, clock = "iterations from the last round's clusters", "time of these"
    beside = "from a cold start"
    return [
        Row("warm-start", iterations, beside, warm, cold, aim=0.5, unit="iterations", note=reach),
        Row("warm-start", clock, beside, warm_seconds, cold_seconds, aim=0.5, note=f"{ends}; k = {k}"),
    ]


class _Watched(ClusterPseudoLabeler):
    """A labeler that keeps what each round clustered, and how."""

    def label(self, embeddings: Tensor) -> PseudoLabels:
        self.rounds = [*getattr(self, "rounds", []), (embeddings, super().label(embeddings))]
        return self.rounds[-1][1]


def _real_rounds(sizes: Sizes, k: int) -> list[tuple[Tensor, PseudoLabels]]:
    """Return embeddings and clusters of successive rounds of a training from scratch on glyphs."""
    labeler = _Watched(k)
    fit(
        EmbeddingModel(*build(sizes)),
        images_of(sizes),
        labeler=labeler,
        criterion=criterion_of(),
        max_steps=3 * sizes.steps,
        relabel_every=max(1, sizes.steps // 2),
        first_round="embeddings",
        freeze_batch_norm=False,
        progress=False,
    )
    return labeler.rounds


def _iterations(embeddings: Tensor, k: int, target: float, start: Tensor | None) -> int:
    """Return how many iterations reach the target, as many as a cold start has if none do."""
    for count in range(1, ITERATIONS):
        if objective(embeddings, k_means(embeddings, k, max_iter=count, start=start)) <= target:
            return count
    return ITERATIONS


def objective(embeddings: Tensor, labels: Tensor) -> float:
    """Return the sum of squared distances to the means of the clusters."""
    means = cluster_means(embeddings, labels, int(labels.max()) + 1)
    return sum(
        float((part - means[at]).square().sum(dtype=torch.float64))
        for part, at in zip(embeddings.split(8192), labels.split(8192), strict=True)
    )


def lines_of_growth(sizes: Sizes) -> list[Row]:
    """Measure the second round at each size, each in a process of its own."""
    costs = {n: in_process(prepare_growth, n) for n in sizes.growth}
    powers = exponents(costs)
    listed = ", ".join(f"{part} {power:.2f}" for part, power in powers.items())
    return [
        Row(
            "growth",
            f"a round of {more:,} embeddings",
            f"of {less:,}",
            [costs[more].seconds],
            [costs[less].seconds],
            note=f"{more / less:g} times the embeddings; exponents over all sizes: {listed}",
            more={"sizes": {str(n): vars(costs[n]) for n in sizes.growth}, "exponents": powers},
        )
        for less, more in pairwise(sizes.growth)
    ]


def prepare_growth(n: int) -> Callable[[], dict[str, float]]:
    """Return a round's clustering, matching, sampler and judging, to be run; it returns the seconds of each."""
    embeddings = clustered(n, GROWTH_DIMENSIONS, 2 * GROWTH_CLUSTERS, noise=1.0)
    labeler = ClusterPseudoLabeler(GROWTH_CLUSTERS, max_iter=GROWTH_ITERATIONS)
    labeler.label(embeddings)
    probe = torch.randperm(n)[:PROBE]
    views = functional.normalize(embeddings[probe] + 0.02 * torch.randn(len(probe), GROWTH_DIMENSIONS))
    label_free_scores(embeddings, views, probe)  # as at the start of a run: the first time libraries set themselves up

    def a_round() -> dict[str, float]:
        begun = now()
        pseudo = labeler.label(embeddings)
        labelled = now()
        next(iter(PseudoLabelSampler(pseudo.labels)))
        drawn = now()
        label_free_scores(embeddings, views, probe)
        return {"labels": labelled - begun, "sampler": drawn - labelled, "judging": now() - drawn}

    return a_round


def exponents(costs: dict[int, Cost]) -> dict[str, float]:
    """Return the power of n with which each cost grows, by a line through the logarithms."""
    columns = {"time": [cost.seconds for cost in costs.values()], "memory": [cost.mebibytes for cost in costs.values()]}
    parts = next(iter(costs.values())).found
    columns |= {part: [cost.found[part] for cost in costs.values()] for part in parts}
    return {part: float(np.polyfit(np.log(list(costs)), np.log(values), 1)[0]) for part, values in columns.items()}
