"""The figures of the quickstart: nearest neighbors before and after training, and training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
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
        title = f"{name}: {hits.float().mean():.0%} of the {k} nearest are correct"
        axes[0, 2 + block * (k + 1)].set_title(title, fontsize=9, color=INK, loc="left")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _show(axis: plt.Axes, image: Tensor, color: str) -> None:
    """Show an image with a frame of this color."""
    axis.imshow(image.squeeze(0).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=color, linewidth=2)


def save_curves(
    path: Path, histories: Mapping[str, Sequence[RoundReport]], recalls: Mapping[str, Sequence[float]]
) -> None:
    """Save a figure of loss, agreement, rotation accuracy and R@1 by optimizer step, with one line per method."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    titles = ("metric loss", "agreement with the previous round", "rotation accuracy", "R@1 on unseen scripts")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel("optimizer steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for color, (name, history) in zip(mpl.color_sequences["tab10"], histories.items(), strict=False):
        steps = [report.step for report in history]
        rows = (
            [report.metric_loss for report in history],
            [report.agreement for report in history],
            [report.rotation_accuracy for report in history],
            recalls[name],
        )
        for axis, values in zip(axes, rows, strict=True):
            points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=name)
    axes[2].axhline(0.25, color=INK, linewidth=0.8, linestyle="--")
    axes[2].annotate("chance", (0.98, 0.25), xycoords=("axes fraction", "data"), va="bottom", ha="right", fontsize=8)
    axes[2].set_ylim(0, 1)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
