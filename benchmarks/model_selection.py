"""Measure how well label-free scores choose between trained models.

    python benchmarks/model_selection.py --data cub100

Runs that differ in loss and length are trained. The runs of benchmarks/quality.py and benchmarks/sweep.py in the output
folder, which differ in seed, method, rotation weight and number of clusters, are added. Each label-free measure of the
training images is compared with R@1 on the test images, over all runs that train on clusters. The table lists
Spearman's rank correlation, and the R@1 that is lost by choosing the run with the highest measure instead of the best
run. It also lists the rank correlation with MAP@R, which is less noisy than R@1.

Two references show which correlation is possible: that of R@1 on the training images, which needs their labels, and
that between R@1 on one half of the test images and R@1 on the other half.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from methods import METHODS, REMOVED, SUPERVISED, UNTRAINED, WITHOUT_CLUSTERS
from plots import save_scatter
from runs import Run, ensure, load, read
from scipy.stats import spearmanr
from settings import Settings, build_parser, options_of, parse
from setups import open_data

from udmlss.results import LabelFreeScores

ON_CLUSTERS = {*METHODS, REMOVED} - {*UNTRAINED, *WITHOUT_CLUSTERS, *SUPERVISED}
OUTPUTS = ("features", "embeddings")
TITLES = ("rank correlation", "with MAP@R", "R@1 lost")


def _score(run: Run, output: str) -> float:
    measured = run["label_free"][output]
    return LabelFreeScores(*(measured[field.name] for field in fields(LabelFreeScores))).score


def _measure(name: str) -> Callable[[Run, str], float]:
    return lambda run, output: float(run["label_free"][output][name])


def _mean(*names: str) -> Callable[[Run, str], float]:
    return lambda run, output: fmean(run["label_free"][output][name] for name in names)


MEASURES: dict[str, Callable[[Run, str], float]] = {
    "`LabelFreeScores.score`": _score,
    "self-retrieval": _measure("self_retrieval"),
    "shared neighbors": _measure("shared_neighbors"),
    "consistency": _measure("consistency"),
    "consistency with the k of the training": _measure("own_consistency"),
    "mean of self-retrieval and consistency": _mean("self_retrieval", "consistency"),
    "geometric mean of self-retrieval and shared neighbors": lambda run, output: sqrt(
        run["label_free"][output]["self_retrieval"] * run["label_free"][output]["shared_neighbors"]
    ),
    "spread": _measure("spread"),
    "with labels: R@1 of the training images": lambda run, output: float(run["references"][output]["training_recall"]),
    "agreement of the last two rounds": lambda run, _output: float(run["history"][-1]["agreement"] or 0),
}


def variants(base: Settings) -> dict[str, tuple[str, Settings]]:
    """Return the runs to train in addition to those of the table and the sweeps: method and settings by name."""
    lengths = [base.steps // 5, base.steps // 2, 2 * base.steps]
    return {
        **{f"loss-{loss}": ("udml", replace(base, loss=loss)) for loss in ("nt-xent", "sup-con")},
        **{f"steps-{steps}": ("udml", replace(base, steps=steps)) for steps in lengths},
    }


def gather(folder: Path) -> dict[str, Run]:
    """Return all runs on clusters that have all measures, by path, from a folder and the folders in it.

    Runs with equal scores count once: a sweep without rotation trains the same model as `udml` in the table.
    """
    found = {path: load(path) for path in sorted(folder.rglob("*-*.json"), reverse=True)}
    runs = {
        json.dumps([run["scores"], run["label_free"]]): (str(path.relative_to(folder).with_suffix("")), run)
        for path, run in found.items()
        if run["method"] in ON_CLUSTERS and "spread" in run.get("label_free", {}).get("features", {})
    }
    return dict(sorted(runs.values(), key=lambda named: named[0]))


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per measure and output: rank correlations, and the R@1 lost by choosing with the measure."""
    rows = []
    for output in OUTPUTS:
        recalls = [run["scores"][output]["recall_at"]["1"] for run in runs]
        precisions = [run["scores"][output]["map_at_r"] for run in runs]
        for name, measure in MEASURES.items():
            values = [measure(run, output) for run in runs]
            row = {"measure": name, "output": output, "correlation": rank_correlation(values, recalls)}
            row |= {"map_at_r": rank_correlation(values, precisions)}
            rows.append(row | {"lost": max(recalls) - recalls[values.index(max(values))]})
    return rows


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, or None if all values of a sequence are equal."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(spearmanr(first, second).statistic)


def _correlation_of_halves(runs: Iterable[Run], output: str) -> str:
    first, second = zip(*(run["references"][output]["recall_of_halves"] for run in runs), strict=True)
    found = rank_correlation(first, second)
    return "-" if found is None else f"{found:.2f}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    titles = [f"{title}, {output}" for output in OUTPUTS for title in TITLES]
    lines = [["measure", *titles], ["---"] * (1 + len(titles))]
    for name in MEASURES:
        both = [row for output in OUTPUTS for row in rows if (row["measure"], row["output"]) == (name, output)]
        lines.append([name, *(cell for row in both for cell in _cells(row))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    correlations = (row["correlation"], row["map_at_r"])
    return [*("-" if found is None else f"{found:.2f}" for found in correlations), f"{100 * row['lost']:.1f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    args, base = parse(build_parser(__doc__), arguments)
    data = open_data(base, args.root)
    folder = args.out / "choosing"
    added = variants(base)
    for name, (_, settings) in added.items():
        read(folder / name, settings)  # ends the program if there are runs with other settings, before any work
    for seed in range(args.seeds):
        for name, (method, settings) in added.items():
            ensure(folder / name, method, seed, settings, data)
    runs = gather(args.out)
    save(folder, base, runs, compare(list(runs.values())), args.seeds)


def save(folder: Path, base: Settings, runs: dict[str, Run], rows: Sequence[dict[str, Any]], seeds: int) -> None:
    """Write table.md, table.json and plot.png; print the table."""
    recalls = {output: [run["scores"][output]["recall_at"]["1"] for run in runs.values()] for output in OUTPUTS}
    ranges = [
        f"R@1 of {output} is {min(found):.1%} to {max(found):.1%}; a random choice loses "
        f"{100 * (max(found) - fmean(found)):.1f} points on average."
        for output, found in recalls.items()
    ]
    halves = " and ".join(f"{_correlation_of_halves(runs.values(), output)} for {output}" for output in OUTPUTS)
    command = shlex.join(["--data", base.data, "--seeds", str(seeds), *options_of(base)])
    table = markdown(rows)
    text = [
        table,
        f"{len(runs)} runs. {' '.join(ranges)}",
        f"The rank correlation of R@1 on one half of the test images with R@1 on the other half is {halves}.",
        f"```\npython benchmarks/model_selection.py {command}\n```",
        f"Runs: {', '.join(runs)}.",
    ]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    points = {
        name: {
            output: {"score": _score(run, output), "recall": run["scores"][output]["recall_at"]["1"]}
            for output in OUTPUTS
        }
        for name, run in runs.items()
    }
    content = {"command": command, "settings": asdict(base), "rows": list(rows), "runs": points}
    (folder / "table.json").write_text(json.dumps(content, indent=1) + "\n")
    save_scatter(folder / "plot.png", points, title=f"R@1 by label-free score, {len(runs)} runs on {base.data}")
    print(f"\n{table}\n\nSaved {folder / 'table.md'} and {folder / 'plot.png'}")


if __name__ == "__main__":
    main()
