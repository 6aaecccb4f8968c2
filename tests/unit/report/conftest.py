"""A small run, and the pictures of its images."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from udmlss import LabelFreeScores, PseudoLabels, RoundReport

N_CLUSTERS, PER_CLUSTER = 13, 4


@dataclass(frozen=True)
class Run:
    paths: list[Path]
    embeddings: Tensor
    start_embeddings: Tensor
    pseudo_labels: PseudoLabels
    history: tuple[RoundReport, ...]


def report_of(number: int) -> RoundReport:
    scores = LabelFreeScores(0.9, 0.5 + number / 100, 8.0, 0.7)
    agreement = 0.5 + number / 10 if number else None
    return RoundReport(
        number, 10 * number + 10, 13, 3, 0.1, 0.05, agreement, 1 - number / 9, 1.0, None, None, None, scores, 2.0
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """Return a run on 55 images: 13 clusters of 4 images, and 3 images without a cluster; the last file is damaged."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    n = N_CLUSTERS * PER_CLUSTER + 3
    clusters = torch.arange(n) // PER_CLUSTER
    centers = torch.randn(N_CLUSTERS + 1, 16, generator=generator)
    embeddings, start = (centers[clusters] + noise * torch.randn(n, 16, generator=generator) for noise in (0.3, 1.0))
    paths = [folder / f"{row:02} <b>.jpg" for row in range(n)]
    for path, cluster in zip(paths, clusters.tolist(), strict=True):
        Image.new("RGB", (160, 120), (18 * cluster, 255 - 18 * cluster, 128)).save(path)
    paths[-1].write_bytes(b"not an image")
    labels = clusters.where(clusters < N_CLUSTERS, -1)
    history = tuple(report_of(number) for number in range(4))
    return Run(paths, embeddings, start, PseudoLabels.from_labels(labels, embeddings), history)
