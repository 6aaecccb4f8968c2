"""Score the command `udmlss train` on classes that it does not see.

    python benchmarks/command.py
    python benchmarks/command.py --data groceries,logos -- --epochs 8

The command trains with its defaults on the images of the first half of the classes, and the images of the other half
are scored, as by benchmarks/quality.py. "Features" are those of the pretrained backbone, and "start" are the embeddings
before training, a PCA of the features. Options after `--` are options of the command. Runs are saved below `--out` and
are not repeated. All runs in the folder must have the same options.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from markdown_tables import markdown_table
from pyarrow import parquet
from runs import versions
from settings import PHOTO_SETS, ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "examples"))
from folders import open_folder

from udmlss import EmbeddingModel, embed, evaluate_embeddings, keep_freed_memory
from udmlss.backbones import load_backbone
from udmlss.models import load_model

OUT = ROOT / "benchmarks/results/command"
TITLES = ("dataset", "images", "minutes", "clusters / classes", "features", "start", "after `udmlss train`")
SCORED = ("features", "start", "after")
LEGEND = """R@1 and MAP@R in percent on classes that training did not see, one seed.
minutes: duration of the whole command on {} threads, with the report."""


def measure(root: Path, options: list[str]) -> dict[str, Any]:
    """Train by the command on half of the classes of a dataset, and score the other half."""
    train, test = (open_folder(root, split, transform=None) for split in ("train", "test"))
    with tempfile.TemporaryDirectory() as name:
        listed, run = Path(name) / "train.txt", Path(name) / "run"
        listed.write_text("".join(f"{Path(path).resolve()}\n" for path in train.paths))
        started = time.perf_counter()
        subprocess.run(  # noqa: S603 (the command of this package)
            [sys.executable, "-m", "udmlss", "train", listed, "--out", run, *options], check=True
        )
        seconds = time.perf_counter() - started
        model, backbone = load_model(run / "model")
        clusters = parquet.read_table(run / "images.parquet", columns=["cluster"])["cluster"].unique().to_pylist()
    assert backbone is not None  # noqa: S101 (the command saves it)
    train.transform = test.transform = backbone.test_transform()
    model.to(memory_format=torch.channels_last)
    pretrained = load_backbone(backbone.name, image_size=backbone.image_size)
    pretrained.trunk.to(memory_format=torch.channels_last)
    used = pretrained.without_orientation() if backbone.ignores_orientation else pretrained
    used = used.without_colors() if backbone.ignores_colors else used
    start = EmbeddingModel.from_trunk(used.trunk, train, num_workers=2)
    embeddings = {
        "features": embed(EmbeddingModel(pretrained.trunk, nn.Identity()), test, output="features", num_workers=2),
        "start": embed(start, test, num_workers=2),
        "after": embed(model, test, num_workers=2),
    }
    scores = {name: evaluate_embeddings(rows, test.labels) for name, rows in embeddings.items()}
    return {
        "images": len(train),
        "seconds": seconds,
        "clusters": len([cluster for cluster in clusters if cluster >= 0]),
        "classes": len(train.labels.unique()),
        "scores": {name: [found.recall_at[1], found.map_at_r] for name, found in scores.items()},
        "options": options,
        "versions": versions(),
    }


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    lines = []
    for data, run in runs.items():
        counts = f"{run['clusters']} / {run['classes']}"
        scores = [", ".join(f"{100 * score:.1f}" for score in run["scores"][name]) for name in SCORED]
        lines.append((data, str(run["images"]), f"{run['seconds'] / 60:.1f}", counts, *scores))
    return markdown_table(TITLES, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(PHOTO_SETS), help="comma-separated folders in `--root`")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the datasets")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("options", nargs="*", help="options of `udmlss train`, after --")
    args = parser.parse_args()
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    check_options(parser, args.out, args.options)  # before any work
    for data in args.data.split(","):
        path = args.out / f"{data}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(args.root / data, args.options), indent=1) + "\n")
    runs = read(args.out)
    threads = " or ".join(sorted({run["versions"]["threads"] for run in runs.values()}))
    text = f"{markdown(runs)}\n\n{LEGEND.format(threads)}\n\n```\n{_command(runs, args.out, args.options)}\n```\n"
    (args.out / "table.md").write_text(text)
    print(text)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a folder, by dataset."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def check_options(parser: argparse.ArgumentParser, folder: Path, options: list[str]) -> None:
    """End the program if a run of the folder has other options."""
    for data, run in read(folder).items():
        if run["options"] != options:
            given, found = (shlex.join(each) or "none" for each in (options, run["options"]))
            parser.error(
                f"All runs in {folder} must have the same options, got {given}, but {data}.json has {found}. Pass "
                "another --out."
            )


def _command(runs: Mapping[str, object], out: Path, options: list[str]) -> str:
    words = [] if set(runs) == set(PHOTO_SETS) else ["--data", ",".join(runs)]
    words += [] if out.resolve() == OUT else ["--out", os.path.relpath(out, ROOT)]
    return shlex.join(["python", "benchmarks/command.py", *words, *(["--", *options] if options else [])])


if __name__ == "__main__":
    main()
