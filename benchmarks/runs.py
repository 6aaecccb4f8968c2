"""Runs in files, one each, so that an interrupted table goes on where it stopped."""

import json
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from methods import METHODS
from settings import Settings
from setups import Data, build_model
from views import judge, recall_of_halves, see, see_views

from udmlss import evaluate_embeddings, metrics

Run = dict[str, Any]
PACKAGES = (
    *("torch", "torchvision", "pytorch-metric-learning", "faiss-cpu", "faiss-gpu", "scikit-learn"),
    *("numpy", "matplotlib", "pillow"),
)


def ensure(folder: Path, method: str, seed: int, settings: Settings, data: Data) -> None:
    """Train and score by one method with one seed, unless the folder has that run already."""
    path = folder / f"{method}-{seed}.json"
    if path.exists():
        return
    found = run(method, seed, settings, data)
    write(path, found)
    recalls = ", ".join(f"{what} {scores['recall_at'][1]:.1%}" for what, scores in found["scores"].items())
    print(f"{path}: R@1 of {recalls}, {found['seconds']:.0f} s", flush=True)


def write(path: Path, found: Run) -> None:
    """Write a run to its file, whole or not at all, for another command may be reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(path)


def run(method: str, seed: int, settings: Settings, data: Data) -> Run:
    model = build_model(settings, seed)
    started = time.perf_counter()
    result = METHODS[method](model, data, settings, seed)
    seconds = time.perf_counter() - started
    test, train = see(model, data.test), see(model, data.plain)
    views, probe = see_views(model, data)
    return record(method, seed, settings, seconds) | {
        "scores": {what: asdict(evaluate_embeddings(rows, data.test_labels, seed=seed)) for what, rows in test.items()},
        "label_free": {what: judge(train[what], views[what], probe, settings.n_clusters) for what in train},
        "references": {
            what: {
                "training_recall": metrics.recall_at_k(train[what], data.labels, (1,))[1],
                "recall_of_halves": recall_of_halves(test[what], data.test_labels),
            }
            for what in train
        },
        "history": [] if result is None else [asdict(report) for report in result.history],
    }


def record(method: str, seed: int, settings: Settings, seconds: float) -> Run:
    """Return what every run says of itself; what was measured comes after it."""
    return {
        "method": method,
        "seed": seed,
        "settings": asdict(settings),
        "versions": versions(),
        "seconds": seconds,
    }


def read(folder: Path, settings: Settings) -> list[Run]:
    """Return the folder's runs; end the program if one was made with other settings."""
    runs = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}
    stale = [path for path, found in runs.items() if _settings_of(found) != settings]
    if stale:
        sys.exit(
            f"The runs in {folder} must have these settings, got {len(stale)} with others, {stale[0].name} with "
            f"{_differences(_settings_of(runs[stale[0]]), settings)}. Give another --out, or take them away."
        )
    return list(runs.values())


def _settings_of(run: Run) -> Settings | None:
    try:
        return Settings(**run["settings"])  # a setting younger than the run had its default
    except (KeyError, TypeError):
        return None


def _differences(found: Settings | None, settings: Settings) -> str:
    if found is None:
        return "no settings"
    wanted = asdict(settings)
    return ", ".join(f"{name} {value}" for name, value in asdict(found).items() if value != wanted[name])


def versions() -> dict[str, str]:
    """Return what else a figure depends on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # one of the two faiss packages always is missing
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return found | {"device": device, "threads": str(torch.get_num_threads())}
