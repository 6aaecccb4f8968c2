"""Figures of sweeps and of scores per round."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from tables import Row

COLORS = {"features": "#1f5fa8", "embeddings": "#d1702b"}
LINES = {"frozen": ":", "supervised": "--"}


def save_sweep(path: Path, rows: Sequence[Row], *, title: str, label: str) -> None:
    """Save a figure of R@1 and MAP@R by value, with error bars, and horizontal lines of frozen and supervised.

    Points are joined by lines if the values are numbers.
    """
    are_numbers = all(row.name in LINES or row.name.replace(".", "", 1).isdecimal() for row in rows)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, measure in zip(axes, ("R@1", "MAP@R"), strict=True):
        for output, color in COLORS.items():
            selected = [row for row in rows if row.output == output]
            swept = [row for row in selected if row.name not in LINES]
            axis.errorbar(
                [row.name for row in swept],
                [100 * row.mean[measure] for row in swept],
                [100 * row.spread.get(measure, 0) for row in swept],
                color=color,
                marker="o",
                linestyle="-" if are_numbers else "none",
                capsize=4,
                label=output,
            )
            for row in selected:
                if row.name in LINES:
                    level, style = 100 * row.mean[measure], LINES[row.name]
                    axis.axhline(level, color=color, linestyle=style, label=f"{row.name}, {output}")
        axis.set(xlabel=label, ylabel=f"{measure}, percent")
        _style(axis)
        if not are_numbers:
            axis.tick_params("x", rotation=45)
            plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    figure.suptitle(title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
        _style(axis)
    figure.supxlabel("optimizer steps", fontsize="medium")
    figure.supylabel("R@1, percent", fontsize="medium")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _style(axis: plt.Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
