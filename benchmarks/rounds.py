"""Measure R@1 after every round of a training, and the R@1 of the round that is chosen without labels.

    python benchmarks/rounds.py --data glyphs --methods udml,supervised --steps 2408
    python benchmarks/rounds.py --data cub100 --trunk-lr 3e-4 --lr 3e-3 --relabel-every 10
    python benchmarks/rounds.py --data plankton --methods default --validate
    python benchmarks/rounds.py --data cub100 --methods udml --steps 600 --plot     # also save a figure of all runs

The test images are scored after each round, with labels that `fit` does not use. The runs are saved in a folder per
settings; the table lists all of them.
"""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from markdown_tables import markdown_table
from methods import METHODS, SUPERVISED, UNTRAINED, WITHOUT_CLUSTERS
from model_selection import rank_correlation
from plots import save_rounds
from runs import Run, describe, embed_both, load, read, write
from settings import Settings, build_parser, load_settings, options_of, parse
from setups import Data, build_model, open_data

from udmlss import EarlyStopping, EmbeddingModel, RoundReport, metrics
from udmlss.results import LabelFreeScores
from udmlss.training.run import Run as Training

OUTPUTS = ("embeddings", "features")
TITLES = ("start", "last", "highest", "best weights", "early stopping")
LEGEND = """R@1 in percent on the test images. start: before training. last: after the last round.
highest: the highest of all rounds. best weights: after the round with the highest label-free score of embeddings, whose
weights `BestWeights` restores. early stopping: the same among the rounds until `EarlyStopping("agreement")` ends
training. The label-free score is that of embeddings, also in the columns of features."""


Scores = dict[str, dict[str, float]]  # by measure and output


class ScoresPerRound:
    """A callback that scores the test images before training and after every round."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.scores: list[Scores] = []

    def on_start(self, run: Training) -> None:
        self.run = run
        self._score()

    def on_round(self, _report: RoundReport) -> None:
        self._score()

    def _score(self) -> None:
        model: EmbeddingModel = self.run.rounds.model  # the averaged model, if there is one
        self.scores.append(scores_of(model, self.data))


def scores_of(model: EmbeddingModel, data: Data) -> Scores:
    """Return R@1 and MAP@R of the test images."""
    rows, labels = embed_both(model, data.test), data.test_labels
    return {
        "recall": {output: metrics.recall_at_k(rows[output], labels, 1)[1] for output in OUTPUTS},
        "map_at_r": {output: metrics.map_at_r(rows[output], labels) for output in OUTPUTS},
    }


def train(method: str, seed: int, settings: Settings, data: Data) -> Run:
    """Train a method and measure R@1 after every round."""
    per_round, started = ScoresPerRound(data), time.perf_counter()
    result = METHODS[method](build_model(settings, seed), data, settings, seed, label_free=True, callbacks=[per_round])
    reports = [(0, result.start, None)]
    reports += [(report.step, report.label_free, report.agreement) for report in result.history]
    stopping = EarlyStopping("agreement", threshold=0.95, patience=3)
    stops = [report.step for report in result.history if stopping.on_round(report)]
    return describe(method, seed, settings, time.perf_counter() - started) | {
        "stop_step": stops[0] if stops else result.history[-1].step,
        "rounds": [
            {"step": step, "label_free": asdict(label_free), "agreement": agreement, **scores}
            for (step, label_free, agreement), scores in zip(reports, per_round.scores, strict=True)
        ],
    }


def summarize(run: Run) -> dict[str, Any]:
    """Return the R@1 of a run before training and after the last, the best and the chosen rounds."""
    rounds = run["rounds"]
    scores = [LabelFreeScores(**found["label_free"]).score for found in rounds]
    until_stop = [score for score, found in zip(scores, rounds, strict=True) if found["step"] <= run["stop_step"]]
    chosen = {"best weights": scores.index(max(scores)), "early stopping": until_stop.index(max(until_stop))}
    row: dict[str, Any] = {"rounds": len(rounds) - 1}
    row |= {"steps": {name: rounds[number]["step"] for name, number in chosen.items()}}
    for output in OUTPUTS:
        recalls = [found["recall"][output] for found in rounds]
        row[output] = {"start": recalls[0], "last": recalls[-1], "highest": max(recalls)}
        row[output] |= {name: recalls[number] for name, number in chosen.items()}
        row[output]["correlation"] = rank_correlation(scores, recalls)
    return row


def gather(folder: Path) -> dict[str, Run]:
    """Return the runs in the subfolders of a folder, by path."""
    return {str(path.relative_to(folder).with_suffix("")): load(path) for path in sorted(folder.glob("*/*-*.json"))}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    titles = [f"{title}, {output}" for output in OUTPUTS for title in (*TITLES, "rank correlation")]
    titles = ["run", "rounds", *(f"step of {title}" for title in TITLES[3:]), *titles]
    lines = []
    for name, row in rows.items():
        cells = [cell for output in OUTPUTS for cell in _cells(row[output])]
        lines.append([name, str(row["rounds"]), *map(str, row["steps"].values()), *cells])
    return markdown_table(titles, lines)


def _cells(row: dict[str, Any]) -> list[str]:
    found = row["correlation"]
    return [*(f"{100 * row[title]:.1f}" for title in TITLES), "-" if found is None else f"{found:.2f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--methods", default="udml", help="comma-separated: methods of quality.py that train by fit")
    parser.add_argument("--plot", action="store_true", help="also save plot.png, a figure of all runs")
    args, settings = parse(parser, arguments)
    methods = args.methods.split(",")
    known = [method for method in METHODS if method not in {*UNTRAINED, *WITHOUT_CLUSTERS}]
    if unknown := [method for method in methods if method not in known]:
        parser.error(f"--methods must be among {', '.join(known)}, got {', '.join(unknown)}")
    folder = args.out / "rounds"
    subfolder = folder / ("-".join(option.lstrip("-") for option in options_of(settings)) or "preset")
    read(subfolder, settings)  # ends the program if there are runs with other settings, before any work
    data = open_data(settings, args.root)
    for seed in range(args.seeds):
        for method in methods:
            path = subfolder / f"{method}-{seed}.json"
            if not path.exists():
                write(path, train(method, seed, settings, data))
    runs = gather(folder)
    rows = save(folder, runs, args.data)
    if args.plot:
        save_rounds(folder / "plot.png", {name: run["rounds"] for name, run in runs.items()}, rows)
        print(f"Saved {folder / 'plot.png'}")


def save(folder: Path, runs: dict[str, Run], data: str) -> dict[str, dict[str, Any]]:
    """Write table.md and table.json, print the table and return its rows. `data` is the option of the dataset."""
    rows = {name: summarize(run) for name, run in runs.items()}
    table = markdown(rows)
    on_clusters = [rows[name] for name, run in runs.items() if run["method"] not in SUPERVISED]
    gains = [_mean_gains(on_clusters, output, title) for title in TITLES[3:] for output in OUTPUTS if on_clusters]
    text = [
        table,
        LEGEND,
        *([f"Mean differences in R@1 over the runs on clusters. {'; '.join(gains)}."] if gains else []),
        "\n".join(["```", *dict.fromkeys(_command(run, data) for run in runs.values()), "```"]),
    ]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{table}\n\nSaved {folder / 'table.md'}")
    return rows


def _mean_gains(rows: Sequence[dict[str, Any]], output: str, title: str) -> str:
    gains = {other: 100 * fmean(row[output][title] - row[output][other] for row in rows) for other in TITLES[:3]}
    return f"{title}, {output}: {', '.join(f'{gain:+.1f} from {other}' for other, gain in gains.items())}"


def _command(run: Run, data: str) -> str:
    settings = load_settings(run["settings"])
    words = ["--data", data, "--methods", run["method"], "--seeds", str(run["seed"] + 1)]
    return f"python benchmarks/rounds.py {shlex.join([*words, *(options_of(settings) if settings else [])])}"


if __name__ == "__main__":
    main()
