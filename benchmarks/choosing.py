"""How well label-free scores choose: one command, one table and one plot.

    python benchmarks/choosing.py --data cub100

Runs that differ in loss and length are trained; those of benchmarks/quality.py and benchmarks/sweep.py in the output
folder, which differ in seed, method, rotation weight and number of clusters, join them. Over all runs that cluster,
each label-free measure of the training images is held against R@1 on the test images: Spearman's rank correlation, and
the R@1 lost by taking the run with the highest measure and not the best run. Chance moves MAP@R less than R@1, so its
rank correlation stands beside. Two figures say what can be expected: how well R@1 on the training images, by their
labels, ranks the runs, and how well R@1 on half of the test images ranks them for the other half.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from methods import METHODS, SUPERVISED, WITHOUT_CLUSTERS
from plots import save_scatter
from runs import Run, ensure, read
from scipy.stats import spearmanr
from settings import Settings, build_parser, options_of, parse
from setups import open_data

from udmlss.types import LabelFreeScores

CLUSTERING = set(METHODS) - {"frozen", *WITHOUT_CLUSTERS, *SUPERVISED}
KINDS = ("features", "embeddings")
TITLES = ("rank correlation", "with MAP@R", "R@1 lost")


def _score(run: Run, what: str) -> float:
    measured = run["label_free"][what]
    return LabelFreeScores(*(measured[field.name] for field in fields(LabelFreeScores))).score


def _measure(name: str) -> Callable[[Run, str], float]:
    return lambda run, what: float(run["label_free"][what][name])


def _mean(*names: str) -> Callable[[Run, str], float]:
    return lambda run, what: fmean(run["label_free"][what][name] for name in names)


MEASURES: dict[str, Callable[[Run, str], float]] = {
    "score, as `fit` has it": _score,
    "self-retrieval": _measure("self_retrieval"),
    "shared neighbours": _measure("shared_neighbors"),
    "consistency": _measure("consistency"),
    "consistency in the run's own k": _measure("own_consistency"),
    "mean of self-retrieval and consistency": _mean("self_retrieval", "consistency"),
    "geometric mean of self-retrieval and shared neighbours": lambda run, what: sqrt(
        run["label_free"][what]["self_retrieval"] * run["label_free"][what]["shared_neighbors"]
    ),
    "spread": _measure("spread"),
    "with labels: R@1 of the training images": lambda run, what: float(run["references"][what]["training_recall"]),
    "agreement of the last two rounds": lambda run, _what: float(run["history"][-1]["agreement"] or 0),
}


def variants(base: Settings) -> dict[str, tuple[str, Settings]]:
    """Return the runs to make beside those of the table and the sweeps: method and settings by name."""
    lengths = [base.steps // 5, base.steps // 2, 2 * base.steps]
    return {
        **{f"loss-{loss}": ("udml", replace(base, loss=loss)) for loss in ("nt-xent", "sup-con")},
        **{f"steps-{steps}": ("udml", replace(base, steps=steps)) for steps in lengths},
    }


def gather(folder: Path) -> dict[str, Run]:
    """Return all runs that cluster from the folder and the folders in it, by where they lie.

    A sweep without rotation trains what the table's udml does: of runs with equal figures one is taken. Runs without
    all measures are left out: they were made before these were taken, or for benchmarks/rounds.py.
    """
    found = {path: json.loads(path.read_text()) for path in sorted(folder.rglob("*-*.json"), reverse=True)}
    runs = {
        json.dumps([run["scores"], run["label_free"]]): (str(path.relative_to(folder).with_suffix("")), run)
        for path, run in found.items()
        if run["method"] in CLUSTERING and "spread" in run.get("label_free", {}).get("features", {})
    }
    return dict(sorted(runs.values(), key=lambda named: named[0]))


def weigh(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each measure and what is scored: rank correlations, and the R@1 lost by choosing with it."""
    rows = []
    for what in KINDS:
        recalls = [run["scores"][what]["recall_at"]["1"] for run in runs]
        precisions = [run["scores"][what]["map_at_r"] for run in runs]
        for name, measure in MEASURES.items():
            values = [measure(run, what) for run in runs]
            row = {"measure": name, "scored": what, "correlation": rank_correlation(values, recalls)}
            row |= {"map_at_r": rank_correlation(values, precisions)}
            rows.append(row | {"lost": max(recalls) - recalls[values.index(max(values))]})
    return rows


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's; None where all of one side are equal."""
    if len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(spearmanr(one, other).statistic)


def _between_halves(runs: Iterable[Run], what: str) -> str:
    one, other = zip(*(run["references"][what]["recall_of_halves"] for run in runs), strict=True)
    found = rank_correlation(one, other)
    return "-" if found is None else f"{found:.2f}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    titles = [f"{title}, {what}" for what in KINDS for title in TITLES]
    lines = [["measure", *titles], ["---"] * (1 + len(titles))]
    for name in MEASURES:
        both = [row for what in KINDS for row in rows if (row["measure"], row["scored"]) == (name, what)]
        lines.append([name, *(cell for row in both for cell in _cells(row))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    correlations = (row["correlation"], row["map_at_r"])
    return [*("-" if found is None else f"{found:.2f}" for found in correlations), f"{100 * row['lost']:.1f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    args, base = parse(build_parser(__doc__), arguments)
    data = open_data(base, args.root)
    folder = args.out / "choosing"
    wanted = variants(base)
    for name, (_, settings) in wanted.items():
        read(folder / name, settings)  # refuses runs with other settings before any work
    for seed in range(args.seeds):
        for name, (method, settings) in wanted.items():
            ensure(folder / name, method, seed, settings, data)
    runs = gather(args.out)
    rows = weigh(list(runs.values()))
    write(folder, base, runs, rows, args.seeds)


def write(folder: Path, base: Settings, runs: dict[str, Run], rows: Sequence[dict[str, Any]], seeds: int) -> None:
    """Write table.md, table.json and plot.png; print the table."""
    recalls = {what: [run["scores"][what]["recall_at"]["1"] for run in runs.values()] for what in KINDS}
    ranges = [
        f"{what} from {min(found):.1%} to {max(found):.1%}, so that choosing at random loses "
        f"{100 * (max(found) - fmean(found)):.1f} points"
        for what, found in recalls.items()
    ]
    agreed = " and ".join(f"{_between_halves(runs.values(), what)} in {what}" for what in KINDS)
    command = shlex.join(["--data", base.data, "--seeds", str(seeds), *options_of(base)])
    table = markdown(rows)
    text = [
        table,
        f"{len(runs)} runs. R@1 of {'; of '.join(ranges)}.",
        f"R@1 on one half of the test images has a rank correlation with that on the other half of {agreed}.",
        f"```\npython benchmarks/choosing.py {command}\n```",
        f"The runs: {', '.join(runs)}.",
    ]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    points = {
        name: {what: {"score": _score(run, what), "recall": run["scores"][what]["recall_at"]["1"]} for what in KINDS}
        for name, run in runs.items()
    }
    content = {"command": command, "settings": asdict(base), "rows": list(rows), "runs": points}
    (folder / "table.json").write_text(json.dumps(content, indent=1) + "\n")
    title = f"{len(runs)} runs on {base.data}: what a run looks like without labels, and what it is worth"
    save_scatter(folder / "plot.png", points, title=title)
    print(f"\n{table}\n\nSaved {folder / 'table.md'} and {folder / 'plot.png'}")


if __name__ == "__main__":
    main()
