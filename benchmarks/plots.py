"""The figure of scores per round."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

COLORS = {"features": "#1f5fa8", "embeddings": "#d1702b"}


def save_rounds(
    path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], rows: Mapping[str, Mapping[str, Any]]
) -> None:
    """Save a figure of R@1 by step, with one panel per run, and lines at the steps that are chosen without labels."""
    n_columns = min(3, len(runs))
    n_rows = ceil(len(runs) / n_columns)
    size = (max(7, 4.2 * n_columns), 0.7 + 3 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis, (name, rounds) in zip(axes.flat, runs.items(), strict=False):
        steps = [found["step"] for found in rounds]
        for output, color in COLORS.items():
            axis.plot(steps, [100 * found["recall"][output] for found in rounds], color=color, marker=".", label=output)
        for choice, style in (("best weights", "--"), ("early stopping", ":")):
            axis.axvline(rows[name]["steps"][choice], color="black", linestyle=style, label=choice)
        axis.set_title(name, fontsize="small")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.supxlabel("optimizer steps", fontsize="medium")
    figure.supylabel("R@1, percent", fontsize="medium")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
