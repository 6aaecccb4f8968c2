"""Measure the time and the size of a report on random clusters of embeddings, with pictures of noise.

    python benchmarks/report_size.py --images 100000 --pixels 200

Pictures of noise are the largest that JPEG files can be. The seconds are processor time of one thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from udmlss import PseudoLabels
from udmlss.report import write_report


class Noise(Dataset[Tensor]):
    """Pictures of noise, which are computed when they are read."""

    def __init__(self, n: int, pixels: int) -> None:
        self.n, self.pixels = n, pixels

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(3, self.pixels, self.pixels, generator=torch.Generator().manual_seed(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=2_000)
    parser.add_argument("--pixels", type=int, default=200, help="width and height of the pictures")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    centers = torch.randn(options.clusters, options.dimensions)
    labels = torch.arange(options.images) % options.clusters
    embeddings, start = (
        centers[labels] + noise * torch.randn(options.images, options.dimensions) for noise in (0.8, 1.2)
    )
    images, pseudo_labels = Noise(options.images, options.pixels), PseudoLabels.from_labels(labels)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        path = write_report(Path(folder) / "report.html", images, embeddings, pseudo_labels, start_embeddings=start)
        seconds = time.process_time() - begin
        print(f"{options.images:,} images: {seconds:.0f} s, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
