"""Tables of runs: mean and standard deviation over seeds, in Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from markdown_tables import markdown_table
from runs import RERANK_NEIGHBORS, SEARCH_NEIGHBORS, Run

SCORED = {
    "unseen": "classes that training did not see",
    "own": "the images of the training, whose labels training did not use except for upper bounds",
}
NEIGHBORS = f"""Three searches use the other test images:

- with neighbors: each embedding is averaged with its {SEARCH_NEIGHBORS} nearest neighbors.
- expanded: the query is averaged with its {SEARCH_NEIGHBORS} nearest neighbors and searched again.
- re-ranked: results are ordered by the k-reciprocal neighbors that they share with the query, from lists of
  {RERANK_NEIGHBORS}."""
LEGEND = """Scores in percent on {}, mean ± standard deviation over seeds. embeddings as trained: those before the
embedder is recomputed by a PCA, with which `default` ends."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: A method, or a value of a sweep.
        output: The scored output of the model, "features" or "embeddings", which may be followed by "with neighbors" or
            "as trained".
        seeds: Seeds of the runs.
        mean: Mean of each score over the seeds, in 0..1.
        spread: Standard deviation of each score; empty for a single seed.
    """

    name: str
    output: str
    seeds: tuple[int, ...]
    mean: dict[str, float]
    spread: dict[str, float]


def summarize(groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    """Return a row for each group of runs and each output. Runs of earlier programs have fewer outputs."""
    return [
        _row(name, output, [run for run in runs if output in run["scores"]])
        for name, runs in groups.items()
        for output in dict.fromkeys(output for run in runs for output in run["scores"])
    ]


def _row(name: str, output: str, runs: Sequence[Run]) -> Row:
    measured = [_measures(run, output) for run in runs]
    columns = {measure: [one[measure] for one in measured] for measure in measured[0]}
    return Row(
        name=name,
        output=output,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        mean={measure: fmean(values) for measure, values in columns.items()},
        spread={measure: stdev(values) for measure, values in columns.items() if len(values) > 1},
    )


def _measures(run: Run, output: str) -> dict[str, float]:
    scores = run["scores"][output]
    recalls = {f"R@{k}": recall for k, recall in scores["recall_at"].items()}
    others = {"MAP@R": "map_at_r", "R-precision": "r_precision", "NMI": "nmi", "AMI": "ami"}
    return recalls | {title: scores[key] for title, key in others.items() if key in scores}


def markdown(rows: Sequence[Row], heading: str) -> str:
    """Return the rows as a Markdown table, with scores in percent."""
    titles = [heading, "output", "seeds", *rows[0].mean]
    lines = []
    for row in rows:
        is_untrained = row.name == "frozen" and row.output.startswith("embeddings")
        output = f"{row.output}, untrained" if is_untrained else row.output
        cells = [_cell(row, measure) if measure in row.mean else "" for measure in rows[0].mean]
        lines.append([row.name, output, str(len(row.seeds)), *cells])
    return markdown_table(titles, lines)


def _cell(row: Row, measure: str) -> str:
    mean = f"{100 * row.mean[measure]:.1f}"
    return f"{mean} ± {100 * row.spread[measure]:.1f}" if row.spread else mean


def write(
    folder: Path,
    groups: Mapping[str, Sequence[Run]],
    *,
    heading: str,
    command: str,
    settings: Mapping[str, object],
    notes: Sequence[str] = (),
) -> list[Row]:
    """Write table.md and table.json, with the settings and versions of the runs; print and return the rows."""
    rows = summarize(groups)
    table = markdown(rows, heading)
    all_versions = [tuple(run["versions"].items()) for runs in groups.values() for run in runs]
    versions = [dict(pairs) for pairs in dict.fromkeys(all_versions)]
    legend = [LEGEND.format(SCORED[str(settings.get("protocol", "unseen"))])]
    legend += [NEIGHBORS] if any(row.output == "embeddings with neighbors" for row in rows) else []
    text = [table, *legend, *notes, f"```\n{command}\n```", f"Settings: {_listed(settings)}."]
    text += [f"Versions: {_listed(each)}." for each in versions]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    content = {"command": command, "notes": notes, "settings": settings, "versions": versions}
    content["rows"] = [asdict(row) for row in rows]
    (folder / "table.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{table}\n\nSaved {folder / 'table.md'}")
    return rows


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
