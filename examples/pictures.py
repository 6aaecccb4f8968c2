"""The figures of the quickstart: nearest neighbors before and after training, and training curves.

A module of quickstart.py, not a program.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from udmlss import RoundReport, metrics

CORRECT, WRONG, INK = "#2a9d5c", "#d1495b", "#33373d"


def save_neighbors(
    path: Path, images: Tensor, labels: Tensor, embeddings: Mapping[str, Tensor], *, n_queries: int = 10, k: int = 6
) -> None:
    """Save a figure of queries and their nearest neighbors, with green frames for the query's class and red for others.

    Queries are sorted by the number of correct neighbors that they gain from the first to the last embeddings, and
    `n_queries` are taken at equal distances, so that the figure also shows queries that lose neighbors.
    """
    neighbors = {name: metrics.nearest(rows, k)[1] for name, rows in embeddings.items()}
    correct = {name: labels[indices] == labels[:, None] for name, indices in neighbors.items()}
    first, *_, last = correct.values()
    gain = last.sum(dim=1) - first.sum(dim=1)
    order = torch.argsort(gain, descending=True, stable=True)
    queries = order[torch.linspace(0, len(order) - 1, n_queries).long()]
    columns = 1 + len(neighbors) * (k + 1)
    figure, axes = plt.subplots(n_queries, columns, figsize=(columns * 0.62, n_queries * 0.66 + 0.7))
    for axis in axes.flat:
        axis.axis("off")
    for row, query in zip(axes, queries.tolist(), strict=True):
        _show(row[0], images[query], INK)
        for block, name in enumerate(neighbors):
            start = 2 + block * (k + 1)
            for axis, index, hit in zip(row[start:], neighbors[name][query], correct[name][query], strict=False):
                _show(axis, images[index], CORRECT if hit else WRONG)
    axes[0, 0].set_title("query", fontsize=9, color=INK)
    for block, (name, hits) in enumerate(correct.items()):
        title = f"{name}: {hits.float().mean():.0%} correct"
        axes[0, 2 + block * (k + 1)].set_title(title, fontsize=9, color=INK, loc="left")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _show(axis: plt.Axes, image: Tensor, color: str) -> None:
    """Show an image with a frame of this color."""
    axis.imshow(image.squeeze(0).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=color, linewidth=2)


def save_curves(path: Path, history: Sequence[RoundReport], recalls: Sequence[float]) -> None:
    """Save a figure of loss, number of clusters, agreement and R@1 by optimizer step."""
    curves = {
        "metric loss": [report.metric_loss for report in history],
        "number of clusters": [report.n_clusters for report in history],
        "agreement with the previous round": [report.agreement for report in history],
        "R@1 on unseen scripts": recalls,
    }
    figure, axes = plt.subplots(1, len(curves), figsize=(14, 3.2), layout="constrained")
    for axis, (title, values) in zip(axes, curves.items(), strict=True):
        points = [(report.step, value) for report, value in zip(history, values, strict=True) if value is not None]
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel("optimizer steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        if points:
            axis.plot(*zip(*points, strict=True), "o-", markersize=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
