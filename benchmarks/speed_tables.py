"""The table of speed.py, in Markdown and JSON. Lines are replaced when they are measured again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from markdown_tables import markdown_table
from speed_measurements import Row

TITLES = ("line", "measured", "baseline", "ratio", "aim", "medians", "note")
LEGEND = """\
ratio: the measured value divided by that of the baseline; lower is better, except that in the line growth a ratio equal
to the growth of n is linear. Both are measured by one command on one machine. If a ratio has a range in brackets, both
were measured several times, alternately, and the ratio is the median of the pairs; others were measured once. Memory is
the peak during the measurement minus the memory before it, which includes the embeddings. Seconds are processor time
with `--clock processor`, and otherwise wall time."""

Measured = dict[str, Any]  # a line in table.json: its rows, and the command, sizes and versions


def save(folder: Path, line: str, rows: Sequence[Row], source: Mapping[str, object], order: Sequence[str]) -> None:
    """Add or replace a line in the table of a folder. Lines that are not in `order` are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.json"
    lines: dict[str, Measured] = json.loads(path.read_text()) if path.exists() else {}
    lines[line] = {"rows": [asdict(row) | {"ratios": row.ratios} for row in rows], **source}
    lines = {name: lines[name] for name in order if name in lines}
    path.write_text(json.dumps(lines, indent=1) + "\n")
    (folder / "table.md").write_text(_page(lines))


def _page(lines: Mapping[str, Measured]) -> str:
    rows = [_load(row) for measured in lines.values() for row in measured["rows"]]
    sources: dict[str, list[str]] = {}
    for name, measured in lines.items():
        versions = ", ".join(f"{package} {version}" for package, version in measured["versions"].items())
        sources.setdefault(f"`{measured['command']}` with {versions}.", []).append(name)
    text = [f"{', '.join(names)}: {source}" for source, names in sources.items()]
    return "\n\n".join([markdown(rows), LEGEND, *text]) + "\n"


def _load(row: Mapping[str, Any]) -> Row:
    return Row(**{name: value for name, value in row.items() if name != "ratios"})


def markdown(rows: Sequence[Row]) -> str:
    return markdown_table(TITLES, map(_cells, rows))


def _cells(row: Row) -> list[str]:
    if not row.ours:
        return [row.line, row.measured, row.baseline, "-", _aim(row), "-", row.note]
    ratios = row.ratios
    spread = f" ({number(min(ratios))} to {number(max(ratios))})" if len(ratios) > 1 else ""
    medians = f"{number(median(row.ours))} and {number(median(row.theirs))} {row.unit}"
    return [row.line, row.measured, row.baseline, f"{number(median(ratios))}{spread}", _aim(row), medians, row.note]


def _aim(row: Row) -> str:
    if row.aim is None:
        return "-"
    return f"at most {number(row.aim)}" + {None: "", True: ", met", False: ", missed"}[row.met]


def number(value: float) -> str:
    """Return a number with two or three significant digits."""
    digits = 3 if value < 1 else 2 if value < 100 else 0  # noqa: PLR2004
    return f"{value:.{digits}f}" if value >= 0.01 else f"{value:.2g}"  # noqa: PLR2004
