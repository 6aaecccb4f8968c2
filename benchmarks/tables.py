"""Runs to a table: mean and standard deviation over seeds, as Markdown and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from runs import Run


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        name: What was run: a method, or a value of a sweep.
        scored: "features" or "embeddings".
        seeds: The seeds it was run with.
        mean: Mean of each measure over the seeds: shares in 0..1, and seconds.
        spread: Standard deviation of each; empty for one seed.
        closed: Share of the way in R@1 from `frozen` to `supervised`; None where there is no such way.
    """

    name: str
    scored: str
    seeds: tuple[int, ...]
    mean: dict[str, float]
    spread: dict[str, float]
    closed: float | None = None


def summarise(groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    """Return a row for each group of runs and each kind of rows that was scored."""
    rows = [_row(name, what, runs) for name, runs in groups.items() if runs for what in runs[0]["scores"]]
    recall = {(row.name, row.scored): row.mean["R@1"] for row in rows}
    return [replace(row, closed=_closed(row, recall)) for row in rows]


def _row(name: str, scored: str, runs: Sequence[Run]) -> Row:
    measured = [_measures(run, scored) for run in runs]
    columns = {measure: [one[measure] for one in measured] for measure in measured[0]}
    return Row(
        name=name,
        scored=scored,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        mean={measure: fmean(values) for measure, values in columns.items()},
        spread={measure: stdev(values) for measure, values in columns.items() if len(values) > 1},
    )


def _measures(run: Run, scored: str) -> dict[str, float]:
    scores = run["scores"][scored]
    recalls = {f"R@{k}": share for k, share in scores["recall_at"].items()}
    others = {"MAP@R": "map_at_r", "R-precision": "r_precision", "NMI": "nmi", "AMI": "ami"}
    return recalls | {title: scores[key] for title, key in others.items()} | {"seconds": run["seconds"]}


def _closed(row: Row, recall: Mapping[tuple[str, str], float]) -> float | None:
    start, end = recall.get(("frozen", row.scored)), recall.get(("supervised", row.scored))
    if start is None or end is None or end <= start:
        return None
    return (row.mean["R@1"] - start) / (end - start)


def markdown(rows: Sequence[Row], heading: str) -> str:
    """Return the rows as a Markdown table, shares in percent."""
    titles = [heading, "scored", "seeds", *rows[0].mean, "closed"]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        scored = f"{row.scored}, untrained" if (row.name, row.scored) == ("frozen", "embeddings") else row.scored
        cells = [_cell(row, measure) for measure in row.mean]
        lines.append(
            [row.name, scored, str(len(row.seeds)), *cells, "-" if row.closed is None else f"{row.closed:.0%}"]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row, measure: str) -> str:
    factor, digits = (1, 0) if measure == "seconds" else (100, 1)
    mean = f"{factor * row.mean[measure]:.{digits}f}"
    return f"{mean} ± {factor * row.spread[measure]:.{digits}f}" if row.spread else mean


def write(
    folder: Path,
    groups: Mapping[str, Sequence[Run]],
    *,
    heading: str,
    command: str,
    settings: Mapping[str, object],
    notes: Sequence[str] = (),
) -> list[Row]:
    """Write table.md and table.json, with the settings and versions that made the runs; print and return the rows."""
    rows = summarise(groups)
    table = markdown(rows, heading)
    all_versions = [tuple(run["versions"].items()) for runs in groups.values() for run in runs]
    versions = [dict(pairs) for pairs in dict.fromkeys(all_versions)]
    lines = [
        "Shares in percent, mean ± standard deviation over seeds, on classes that training never saw; seconds of",
        "training. closed: the share of the way in R@1 from `frozen` to `supervised`.",
        *notes,
    ]
    text = [table, "\n".join(lines), f"```\n{command}\n```", f"Settings: {_listed(settings)}."]
    text += [f"Made with {_listed(each)}." for each in versions]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    content = {"command": command, "notes": notes, "settings": settings, "versions": versions}
    content["rows"] = [asdict(row) for row in rows]
    (folder / "table.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{table}\n\nSaved {folder / 'table.md'}")
    return rows


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
