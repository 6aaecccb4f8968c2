"""Measured rows and runs to pictures."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from tables import Row

COLOURS = {"features": "#1f5fa8", "embeddings": "#d1702b"}
LINES = {"frozen": ":", "supervised": "--"}


def save_sweep(path: Path, rows: Sequence[Row], *, title: str, label: str) -> None:
    """Draw R@1 and MAP@R over the values, with error bars; frozen and supervised are horizontal lines.

    Values are joined if they are numbers; those that are names stand aslant, for there may be many.
    """
    are_numbers = all(row.name in LINES or row.name.replace(".", "", 1).isdecimal() for row in rows)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, measure in zip(axes, ("R@1", "MAP@R"), strict=True):
        for scored, colour in COLOURS.items():
            kind = [row for row in rows if row.scored == scored]
            swept = [row for row in kind if row.name not in LINES]
            axis.errorbar(
                [row.name for row in swept],
                [100 * row.mean[measure] for row in swept],
                [100 * row.spread.get(measure, 0) for row in swept],
                color=colour,
                marker="o",
                linestyle="-" if are_numbers else "none",
                capsize=4,
                label=scored,
            )
            for row in kind:
                if row.name in LINES:
                    level, style = 100 * row.mean[measure], LINES[row.name]
                    axis.axhline(level, color=colour, linestyle=style, label=f"{row.name}, {scored}")
        axis.set(xlabel=label, ylabel=f"{measure} on unseen classes, percent")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        if not are_numbers:
            axis.tick_params("x", rotation=45)
            plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    figure.suptitle(title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save_scatter(path: Path, runs: Mapping[str, Mapping[str, Mapping[str, float]]], *, title: str) -> None:
    """Draw R@1 over the label-free score, a point a run; `runs` are `score` and `recall` by name and what is scored."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (scored, colour) in zip(axes, COLOURS.items(), strict=True):
        points = [run[scored] for run in runs.values()]
        best, chosen = (max(points, key=lambda point: point[key]) for key in ("recall", "score"))
        shares = [(100 * point["score"], 100 * point["recall"]) for point in points]
        axis.scatter(*zip(*shares, strict=True), color=colour, alpha=0.6, label="a run")
        for point, marker, label in ((best, "^", "the best"), (chosen, "s", "chosen without labels")):
            to_device = (100 * point["score"], 100 * point["recall"])
            axis.plot(*to_device, marker, mfc="none", mec="black", ms=12, label=label)
        axis.set(xlabel=f"label-free score of {scored}, training images", ylabel="R@1 on unseen classes, percent")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save_rounds(
    path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], rows: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw R@1 over steps, a panel a run; lines stand where the weights were kept, with settled clusters or without."""
    across = min(3, len(runs))
    down = ceil(len(runs) / across)
    size = (max(7, 4.2 * across), 0.7 + 3 * down)
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis, (name, rounds) in zip(axes.flat, runs.items(), strict=False):
        steps = [found["step"] for found in rounds]
        for what, colour in COLOURS.items():
            axis.plot(steps, [100 * found["recall"][what] for found in rounds], color=colour, marker=".", label=what)
        for kept, style, label in (("kept", "--", "kept without labels"), ("settled", ":", "once clusters settled")):
            axis.axvline(rows[name][f"{kept}_step"], color="black", linestyle=style, label=label)
        axis.set_title(name, fontsize="small")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.supxlabel("optimiser steps", fontsize="medium")
    figure.supylabel("R@1 on unseen classes, percent", fontsize="medium")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
