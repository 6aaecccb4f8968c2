"""Rows to a table and a plot, Markdown and JSON; lines measured earlier stay until they are measured again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt
from speed_measuring import Row

TITLES = ("line", "measured", "beside", "ratio", "aim", "medians", "note")
NOTES = """\
ratio: what the measured took over what stands beside it, median of the pairs and, of several, least to most; lower is
better. Both ran in one command on one machine, in turn. Memory is the most that the process held during the run less
what it held before, the embeddings included. With `--clock processor` seconds are those that the processor worked."""

Measured = dict[str, Any]  # what table.json has of a line: rows, and the command, sizes and versions that made them


def save(folder: Path, line: str, rows: Sequence[Row], how: Mapping[str, object], order: Sequence[str]) -> None:
    """Put a line into the folder's table, in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.json"
    lines: dict[str, Measured] = json.loads(path.read_text()) if path.exists() else {}
    lines[line] = {"rows": [asdict(row) | {"ratios": row.ratios} for row in rows], **how}
    lines = {name: lines[name] for name in order if name in lines}
    path.write_text(json.dumps(lines, indent=1) + "\n")
    (folder / "table.md").write_text(_page(lines))
    if line == "growth":
        save_growth(folder / "growth.png", rows[0].more["sizes"], rows[0].more["exponents"])


def _page(lines: Mapping[str, Measured]) -> str:
    rows = [_of(row) for found in lines.values() for row in found["rows"]]
    made: dict[str, list[str]] = {}
    for name, found in lines.items():
        versions = ", ".join(f"{part} {number}" for part, number in found["versions"].items())
        made.setdefault(f"`{found['command']}` with {versions}.", []).append(name)
    sources = [f"{', '.join(names)}: {how}" for how, names in made.items()]
    return "\n\n".join([markdown(rows), NOTES, *sources]) + "\n"


def _of(row: Mapping[str, Any]) -> Row:
    return Row(**{name: value for name, value in row.items() if name != "ratios"})


def markdown(rows: Sequence[Row]) -> str:
    cells = [TITLES, ["---"] * len(TITLES), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cells(row: Row) -> list[str]:
    if not row.ours:
        return [row.line, row.measured, row.beside, "-", _aim(row), "-", row.note]
    ratios = row.ratios
    spread = f" ({number(min(ratios))} to {number(max(ratios))})" if len(ratios) > 1 else ""
    medians = f"{number(median(row.ours))} and {number(median(row.theirs))} {row.unit}"
    return [row.line, row.measured, row.beside, f"{number(median(ratios))}{spread}", _aim(row), medians, row.note]


def _aim(row: Row) -> str:
    if row.aim is None:
        return "-"
    return f"at most {number(row.aim)}" + {None: "", True: ", met", False: ", missed"}[row.met]


def number(value: float) -> str:
    """Return it with three digits that count."""
    digits = 3 if value < 1 else 2 if value < 100 else 0  # noqa: PLR2004
    return f"{value:.{digits}f}" if value >= 0.01 else f"{value:.2g}"  # noqa: PLR2004


def save_growth(path: Path, sizes: Mapping[str, Mapping[str, Any]], exponents: Mapping[str, float]) -> None:
    """Draw time and peak memory over the number of embeddings, both axes logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    counts = [int(count) for count in sizes]
    times = {"time": [cost["seconds"] for cost in sizes.values()]}
    times |= {part: [cost["found"][part] for cost in sizes.values()] for part in next(iter(sizes.values()))["found"]}
    memory = {"memory": [cost["mebibytes"] for cost in sizes.values()]}
    for axis, columns, label in zip(
        axes, (times, memory), ("seconds a round", "MiB beyond the embeddings"), strict=True
    ):
        for name, values in columns.items():
            axis.loglog(
                counts,
                values,
                marker="o",
                lw=2.5 if name == "time" else 1.2,
                label=f"{name}, exponent {exponents[name]:.2f}",
            )
        axis.set(xlabel="embeddings", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.suptitle("What a round costs as the images grow in number, training steps and forward passes apart")
    figure.savefig(path, dpi=150)
    plt.close(figure)
