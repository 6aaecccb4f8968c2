"""Runs in files, one per method and seed, so that an interrupted command can be repeated."""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from methods import METHODS, REFITTED
from settings import ROOT, Settings, load_settings
from setups import Data, build_model
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from udmlss import EmbeddingModel, embed, evaluate_embeddings, label_free_scores, metrics
from udmlss.clustering.kmeans import cluster_means, k_means
from udmlss.inference import embed_features
from udmlss.models.pca import PCAEmbedder
from udmlss.neighbors import average_with_neighbors
from udmlss.search import SearchIndex
from udmlss.types import Images

Run = dict[str, Any]
Rows = dict[str, Tensor]  # features and embeddings of the same images
PACKAGES = (
    *("torch", "torchvision", "pytorch-metric-learning", "faiss-cpu", "faiss-gpu", "scikit-learn"),
    *("numpy", "matplotlib", "pillow"),
)
SEARCH_NEIGHBORS = 3  # that each test image is averaged with before the search, or that are added to a query
RERANK_NEIGHBORS = 20  # in the lists that re-ranking compares, the published number
VIEWS = 1000  # images of which an augmented view is embedded for label-free scores


def ensure(folder: Path, method: str, seed: int, settings: Settings, data: Data, *, searches: bool = True) -> None:
    """Train and score a method with a seed, unless the folder has that run."""
    path = folder / f"{method}-{seed}.json"
    if path.exists():
        return
    found = run(method, seed, settings, data, searches=searches)
    write(path, found)
    recalls = ", ".join(f"{output} {scores['recall_at'][1]:.1%}" for output, scores in found["scores"].items())
    print(f"{path}: R@1 of {recalls}; trained for {found['seconds']:.0f} s", flush=True)


def write(path: Path, found: Run) -> None:
    """Write a run to its file; another command never reads an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def run(method: str, seed: int, settings: Settings, data: Data, *, searches: bool = True) -> Run:
    """Train and score a method with a seed, also by searches with neighbors unless `searches` is False."""
    model = build_model(settings, seed)
    started = time.perf_counter()
    result = METHODS[method](model, data, settings, seed)
    seconds = time.perf_counter() - started
    train = embed_both(model, data.plain)
    test = train if data.test is data.plain else embed_both(model, data.test)
    trained = {}
    if method in REFITTED and isinstance(model.embedder, PCAEmbedder):
        trained = {
            "embeddings as trained": asdict(evaluate_embeddings(test["embeddings"], data.test_labels, seed=seed))
        }
        model.embedder.fit(train["features"])  # as `fit` does when training ends
        for rows in (train, test):
            rows["embeddings"] = embed_features(model, rows["features"])
    views, indices = embed_views(model, data)
    return describe(method, seed, settings, seconds) | {
        "n_classes": len(data.labels.unique()),
        "scores": score(test, data.test_labels, seed, searches=searches) | trained,
        "label_free": {name: score_without_labels(rows, views[name], indices) for name, rows in train.items()},
        "references": {
            name: {"training_recall": metrics.recall_at_k(rows, data.labels, 1)[1]} for name, rows in train.items()
        },
        "history": [] if result is None else [asdict(report) for report in result.history],
    }


def score(rows: Rows, labels: Tensor, seed: int, *, searches: bool) -> dict[str, dict[str, Any]]:
    """Return the scores of the test images by output."""
    outputs = rows | averages(rows) if searches else rows
    scores = {name: asdict(evaluate_embeddings(each, labels, seed=seed)) for name, each in outputs.items()}
    return scores | search_with_neighbors(rows["embeddings"], labels) if searches else scores


def has_searches(found: Run) -> bool:
    """Return whether a run has scores of searches with neighbors."""
    return "embeddings with neighbors" in found["scores"]


def describe(method: str, seed: int, settings: Settings, seconds: float) -> Run:
    """Return the description of a run, to which its measurements are added."""
    return {
        "method": method,
        "seed": seed,
        "settings": asdict(settings),
        "versions": versions(),
        "seconds": seconds,
    }


def load(path: Path) -> Run:
    """Return the run in a file."""
    found: Run = json.loads(path.read_text())
    return found


def read(folder: Path, settings: Settings) -> list[Run]:
    """Return the runs of a folder, or end the program if one has other settings."""
    runs = {path: load(path) for path in sorted(folder.glob("*-*.json"))}
    stale = [path for path, found in runs.items() if load_settings(found.get("settings", {})) != settings]
    if stale:
        difference = _differences(load_settings(runs[stale[0]].get("settings", {})), settings)
        sys.exit(
            f"All runs in {folder} must have these settings, got {len(stale)} with others: {stale[0].name} has "
            f"{difference}. Pass another --out, or move the runs elsewhere."
        )
    return list(runs.values())


def _differences(found: Settings | None, settings: Settings) -> str:
    if found is None:
        return "settings that no longer exist"
    wanted = asdict(settings)
    return ", ".join(f"{name} {value}" for name, value in asdict(found).items() if value != wanted[name])


def versions() -> dict[str, str]:
    """Return the commit of the library, the versions of the packages, the device and the number of threads."""
    found = {"commit": _commit(), "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # at least one of the two faiss packages is not installed
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return found | {"device": device, "threads": str(torch.get_num_threads())}


@cache
def _commit() -> str:
    """Return the commit of the checkout, followed by "+" if files were changed since, or "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 (constant)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def embed_both(model: EmbeddingModel, images: Images) -> Rows:
    """Return features and embeddings of all images, from one forward pass of the trunk."""
    features = embed(model, images, output="features")
    return {"features": features, "embeddings": embed_features(model, features)}


def averages(rows: Rows) -> Rows:
    """Return the averages with the nearest neighbors, as they are searched after training."""
    return {f"{name} with neighbors": average_with_neighbors(found, SEARCH_NEIGHBORS) for name, found in rows.items()}


def search_with_neighbors(rows: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:
    """Return the scores of searches by query expansion and by re-ranking, each item with the other items as gallery."""
    k = 1 + max(8, int(labels.bincount().max()) - 1)  # the item itself, and the most that a score needs
    index = SearchIndex(rows, target_recall=1)
    searches = {
        "embeddings, expanded": {"expand_neighbors": SEARCH_NEIGHBORS + 1},  # of which the first is the item itself
        "embeddings, re-ranked": {"rerank_neighbors": RERANK_NEIGHBORS},
    }
    rankings = {name: index.search(rows, k, **options)[0] for name, options in searches.items()}
    return {name: asdict(metrics.score_rankings(torch.from_numpy(ids), labels)) for name, ids in rankings.items()}


def embed_views(model: EmbeddingModel, data: Data) -> tuple[Rows, Tensor]:
    """Return features and embeddings of augmented views, and the indices of their images, equal in all runs."""
    indices = torch.randperm(len(data.plain), generator=torch.Generator().manual_seed(0))[:VIEWS]
    return embed_both(model, Subset(data.train, indices.tolist())), indices


def score_without_labels(rows: Tensor, views: Tensor, indices: Tensor) -> dict[str, float]:
    """Return the label-free scores of the library, and the consistency of clusters, the square root of n in number."""
    rows, views = functional.normalize(rows), functional.normalize(views)
    return asdict(label_free_scores(rows, views, indices)) | {
        "consistency": fmean(consistency(rows, views, indices, isqrt(len(rows)), seed) for seed in range(3)),
    }


def consistency(rows: Tensor, views: Tensor, indices: Tensor, n_clusters: int, seed: int) -> float:
    """Return the fraction of views whose nearest cluster is the cluster of their image."""
    clusters = k_means(rows, n_clusters, seed=seed)
    nearest = torch.cdist(views, cluster_means(rows, clusters, int(clusters.max()) + 1)).argmin(dim=1)
    return float((nearest == clusters[indices]).float().mean())
