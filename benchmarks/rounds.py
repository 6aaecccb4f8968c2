"""How recall goes from round to round of one training, and what choosing a round without labels makes of it.

    python benchmarks/rounds.py --data glyphs --methods udml,supervised --steps 2408
    python benchmarks/rounds.py --data cub100 --trunk-lr 3e-4 --lr 3e-3 --relabel-every 10

After each round the test images are scored with the weights of that time, by labels that `fit` never sees. What
`keep="best"` would have kept is the round with the highest score that `fit` gave itself; with `StopWhenSettled`, of the
rounds until that ends the training. Runs of other settings lie in other folders; the table is made of all.
"""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from choosing import rank_correlation
from methods import METHODS, SUPERVISED, WITHOUT_CLUSTERS
from plots import save_rounds
from runs import Run, read, record, write
from settings import Settings, build_parser, options_of, parse
from setups import Data, build_model, open_data
from views import see

from udmlss import EmbeddingModel, StopWhenSettled, metrics
from udmlss.types import LabelFreeScores

KINDS = ("embeddings", "features")
TITLES = ("start", "last", "best", "kept", "settled")
LEGEND = """R@1 in percent on classes that training never saw. kept: after the round with the highest label-free score
of embeddings, the start among them; settled: likewise, of the rounds until `StopWhenSettled()` would have ended the
training. Both are chosen by embeddings, also where features are scored."""


def follow(method: str, seed: int, settings: Settings, data: Data) -> Run:
    """Train with a checkpoint for each round, and score all of them."""
    model = build_model(settings, seed)
    recalls, started = [_recalls(model, data)], time.perf_counter()
    with TemporaryDirectory() as folder:
        result = METHODS[method](model, data, settings, seed, checkpoint=folder, checkpoints_kept=settings.steps)
        seconds = time.perf_counter() - started
        for path in sorted(Path(folder).glob("step-*.pt")):
            _load(model, path)
            recalls.append(_recalls(model, data))
    looks = [(0, result.start, None)]
    looks += [(report.step, report.label_free, report.agreement) for report in result.history]
    stop = StopWhenSettled()
    ends = [report.step for report in result.history if stop(report)]
    return record(method, seed, settings, seconds) | {
        "settled": ends[0] if ends else settings.steps,
        "rounds": [
            {"step": step, "label_free": asdict(scores), "agreement": agreement, "recall": recall}
            for (step, scores, agreement), recall in zip(looks, recalls, strict=True)
        ],
    }


def _load(model: EmbeddingModel, path: Path) -> None:
    """Give the model the weights of a checkpoint: their average if there is one."""
    state = torch.load(path, weights_only=True)
    if state["average"] is None:
        model.load_state_dict(state["modules"]["model"])
        return
    averaged = {name.removeprefix("module."): value for name, value in state["average"].items()}
    averaged.pop("n_averaged")
    model.load_state_dict(averaged)


def _recalls(model: EmbeddingModel, data: Data) -> dict[str, float]:
    rows = see(model, data.test)
    return {what: metrics.recall_at_k(rows[what], data.test_labels, (1,))[1] for what in KINDS}


def weigh(run: Run) -> dict[str, Any]:
    """Return a run's R@1 before training, after the last, the best and the chosen rounds, and which these are."""
    rounds = run["rounds"]
    scores = [LabelFreeScores(**found["label_free"]).score for found in rounds]
    until = [score for score, found in zip(scores, rounds, strict=True) if found["step"] <= run["settled"]]
    kept, settled = scores.index(max(scores)), until.index(max(until))
    row: dict[str, Any] = {"rounds": len(rounds) - 1}
    row |= {"kept_step": rounds[kept]["step"], "settled_step": rounds[settled]["step"]}
    for what in KINDS:
        recalls = [found["recall"][what] for found in rounds]
        row[what] = {"start": recalls[0], "last": recalls[-1], "best": max(recalls)}
        row[what] |= {"kept": recalls[kept], "settled": recalls[settled]}
        row[what]["correlation"] = rank_correlation(scores, recalls)
    return row


def gather(folder: Path) -> dict[str, Run]:
    """Return all runs in the folders of the folder, by where they lie."""
    found = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*/*-*.json"))}
    return {str(path.relative_to(folder).with_suffix("")): run for path, run in found.items()}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    titles = [f"{title}, {what}" for what in KINDS for title in (*TITLES, "rank correlation")]
    lines = [["run", "rounds", "kept after step", "settled", *titles], ["---"] * (4 + len(titles))]
    for name, row in rows.items():
        cells = [cell for what in KINDS for cell in _cells(row[what])]
        lines.append([name, *(str(row[title]) for title in ("rounds", "kept_step", "settled_step")), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    found = row["correlation"]
    return [*(f"{100 * row[title]:.1f}" for title in TITLES), "-" if found is None else f"{found:.2f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--methods", default="udml", help="separated by commas: those of quality.py that train by fit")
    args, settings = parse(parser, arguments)
    methods = args.methods.split(",")
    known = [method for method in METHODS if method not in {"frozen", "remembered", *WITHOUT_CLUSTERS}]
    if unknown := [method for method in methods if method not in known]:
        parser.error(f"--methods must be among {', '.join(known)}, got {', '.join(unknown)}")
    folder = args.out / "rounds"
    where = folder / ("-".join(option.lstrip("-") for option in options_of(settings)) or "preset")
    read(where, settings)  # refuses runs with other settings before any work
    data = open_data(settings, args.root)
    for seed in range(args.seeds):
        for method in methods:
            path = where / f"{method}-{seed}.json"
            if not path.exists():
                write(path, follow(method, seed, settings, data))
    save(folder, gather(folder))


def save(folder: Path, runs: dict[str, Run]) -> None:
    """Write table.md, table.json and plot.png; print the table."""
    rows = {name: weigh(run) for name, run in runs.items()}
    table = markdown(rows)
    clustering = [rows[name] for name, run in runs.items() if run["method"] not in SUPERVISED]
    means = [_means(clustering, what, chosen) for chosen in TITLES[3:] for what in KINDS if clustering]
    text = [
        table,
        LEGEND,
        *([f"Mean over the runs that cluster. {'; '.join(means)}."] if means else []),
        "\n".join(["```", *dict.fromkeys(_command(run) for run in runs.values()), "```"]),
    ]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    (folder / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    save_rounds(folder / "plot.png", {name: run["rounds"] for name, run in runs.items()}, rows)
    print(f"\n{table}\n\nSaved {folder / 'table.md'} and {folder / 'plot.png'}")


def _means(rows: Sequence[dict[str, Any]], what: str, chosen: str) -> str:
    gains = {other: 100 * fmean(row[what][chosen] - row[what][other] for row in rows) for other in TITLES[:3]}
    return f"{chosen}, {what}: {', '.join(f'{gain:+.1f} beside the {other}' for other, gain in gains.items())}"


def _command(run: Run) -> str:
    settings = Settings(**run["settings"])
    given = [
        "--data",
        settings.data,
        "--methods",
        run["method"],
        "--seeds",
        str(run["seed"] + 1),
        *options_of(settings),
    ]
    return f"python benchmarks/rounds.py {shlex.join(given)}"


if __name__ == "__main__":
    main()
