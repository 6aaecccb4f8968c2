"""How well each method retrieves classes it never saw: one table for a folder in CUB_200_2011's layout.

    python benchmarks/quality.py FOLDER --out benchmarks/results/NAME -- [options of examples/cub_resnet50.py]

Every method is trained by that example, from the same weights, with the same batches and steps, once per seed. Only
`supervised` sees labels, those of the training classes, as the upper bound. A run that is already in the output
folder with the same settings is not run again; the table is made of all that are.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cub_resnet50 as example

from udmlss import ClusterPseudoLabeler, PseudoLabels
from udmlss.data import cub200

METHODS = ("frozen", "udml", "udml-ss", "supervised")
PACKAGES = ("torch", "torchvision", "pytorch-metric-learning", "faiss-cpu", "scikit-learn", "numpy")


class TrueLabels:
    """A labeler that knows the answer: the upper bound."""

    def __init__(self, labels: Tensor) -> None:
        self.pseudo = PseudoLabels(labels, None, labels.bincount())

    def label(self, _embeddings: Tensor) -> PseudoLabels:
        return self.pseudo


def run(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train by one method with one seed; return the scores of features and embeddings."""
    if method in ("udml", "supervised"):
        args.rotation_weight = 0.0
    model = example.build_model(args)
    started = time.perf_counter()
    if method != "frozen":
        clusters = ClusterPseudoLabeler(args.n_clusters, whiten_first=args.whiten_first, seed=args.seed)
        truth = TrueLabels(cub200(args.root, "train").labels)
        example.train(args, model, truth if method == "supervised" else clusters)
    seconds = time.perf_counter() - started
    kinds = ("features",) if method == "frozen" else ("features", "embeddings")
    return {"seconds": seconds, "scores": {what: asdict(example.score(args, model, what)) for what in kinds}}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return the runs as a Markdown table, mean and standard deviation over seeds."""
    lines = [
        "| method | scored | seeds | R@1 | R@2 | R@4 | R@8 | MAP@R | R-precision | NMI | AMI | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        rows = [run for run in runs if run["method"] == method]
        for what in rows[0]["scores"] if rows else ():
            scores = [row["scores"][what] for row in rows]
            cells = [_cell([score["recall_at"][k] for score in scores]) for k in scores[0]["recall_at"]]
            cells += [_cell([score[name] for score in scores]) for name in ("map_at_r", "r_precision", "nmi", "ami")]
            minutes = fmean(row["seconds"] for row in rows) / 60
            lines.append(f"| {method} | {what} | {len(rows)} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def _cell(shares: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(shares):.1f}" if len(set(shares)) > 1 else ""
    return f"{100 * fmean(shares):.1f}{spread}"


def main() -> None:
    ours, theirs = sys.argv[1:], []
    if "--" in ours:
        cut = ours.index("--")
        ours, theirs = ours[:cut], ours[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in CUB_200_2011's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for one file per run and the table")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args(ours)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for method in args.methods:
            path = args.out / f"{method}-{seed}.json"
            done = json.loads(path.read_text()) if path.exists() else {}
            if done.get("options") != theirs and not (method == "frozen" and seed != args.seeds[0]):
                measured = run(method, example.parse([str(args.root), *theirs, "--seed", str(seed)]))
                record = {"method": method, "seed": seed, "options": theirs, **measured}
                path.write_text(json.dumps(record, indent=1) + "\n")
    runs = [json.loads(path.read_text()) for path in sorted(args.out.glob("*.json"))]
    stale = [run for run in runs if run["options"] != theirs]
    if stale:
        parser.error(f"{args.out} holds {len(stale)} runs with other options; give another folder")
    made = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    command = f"python benchmarks/quality.py {args.root.name} --out {args.out} -- {' '.join(theirs)}"
    text = f"{table(runs)}\n\nShares in percent, mean ± standard deviation over seeds.\n\n```\n{command}\n```\n\n"
    text += f"{made}, Python {platform.python_version()}, {torch.get_num_threads()} threads.\n"
    (args.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
