"""Measure time and peak memory of clustering or searching embeddings that are mapped from a file, or of training.

    python benchmarks/memory.py --rows 10000000 --dimensions 64 --clusters 1000 --iterations 1
    python benchmarks/memory.py --rows 10000000 --dimensions 64 --neighbors 15
    python benchmarks/memory.py --rows 1000000 --dimensions 512 --clusters 1000 --iterations 1 --fit disk

Random clusters are written to a file in parts. A second process maps the file and labels the embeddings by
`ClusterPseudoLabeler`, or with `--neighbors` searches the nearest neighbors of each embedding. After each stage it
prints the seconds so far and two peaks: of resident memory, which includes pages of the file that were read, and of
anonymous memory, which does not. `--fit` trains on random images instead, one step per round, with the embeddings on
disk or in memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROWS_PER_PART = 2**16
STARTED = time.perf_counter()


def write_clusters(path: Path, rows: int, dimensions: int, clusters: int) -> None:
    """Write unit vectors around random centers to a .npy file."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((clusters, dimensions), dtype=np.float32)
    with path.open("wb") as file:  # a mapped file would count as resident memory of the process that reads it
        header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (rows, dimensions)}
        np.lib.format.write_array_header_1_0(file, header)
        for begin in range(0, rows, ROWS_PER_PART):
            labels = generator.integers(clusters, size=min(ROWS_PER_PART, rows - begin))
            part = centers[labels] + 0.5 * generator.standard_normal((len(labels), dimensions), dtype=np.float32)
            file.write((part / np.linalg.norm(part, axis=1, keepdims=True)).tobytes())


def cluster(path: Path, clusters: int, iterations: int, rounds: int) -> None:
    """Cluster the embeddings in a file, and print time and memory after each round."""
    import torch  # noqa: PLC0415 (the process that writes the file does not need it)

    from udmlss import ClusterPseudoLabeler  # noqa: PLC0415

    embeddings = torch.from_numpy(np.load(path, mmap_mode="r+"))
    labeler = ClusterPseudoLabeler(clusters, max_iter=iterations)
    report("imports")
    for number in range(rounds):
        pseudo_labels = labeler.label(embeddings)
        report(f"round {number}, {pseudo_labels.n_clusters} clusters")


def search(path: Path, neighbors: int) -> None:
    """Search the nearest neighbors of all embeddings in a file, and print time and memory."""
    import torch  # noqa: PLC0415 (as above)

    from udmlss.neighbors import neighbor_lists  # noqa: PLC0415

    embeddings = torch.from_numpy(np.load(path, mmap_mode="r+"))
    report("imports")
    lists = neighbor_lists(embeddings, neighbors)
    report(f"lists of {neighbors}, recall {lists.recall:.3f}")


def train(rows: int, dimensions: int, clusters: int, iterations: int, rounds: int, *, folder: Path | None) -> None:
    """Train on random images, and print time and memory after each round."""
    import torch  # noqa: PLC0415 (as above)
    from pytorch_metric_learning.losses import ContrastiveLoss  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from udmlss import ClusterPseudoLabeler, EmbeddingModel, fit  # noqa: PLC0415

    class Noise(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return rows

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.randn(1, 4, 4)

    report("imports")
    fit(
        EmbeddingModel(nn.Flatten(), nn.Linear(16, dimensions)),
        Noise(),
        labeler=ClusterPseudoLabeler(clusters, max_iter=iterations),
        criterion=ContrastiveLoss(),
        clusters_per_batch=16,
        views=1,
        cluster_on="embeddings",
        average_weights=False,
        max_steps=rounds,
        relabel_every=1,
        embeddings_folder=folder,
        callbacks=lambda finished: report(f"round {finished.round}"),
        progress=False,
    )


class AnonymousMemory:
    """The peak of this process's anonymous memory in the `with` block, in KiB, sampled every 20 ms."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()

    def __enter__(self) -> None:
        self._ended.clear()
        threading.Thread(target=self._sample, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max(self.peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))


ANONYMOUS_MEMORY = AnonymousMemory()


def report(stage: str) -> None:
    """Print time and memory after a stage."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    anonymous = ANONYMOUS_MEMORY.peak / 2**20
    seconds = f"{time.perf_counter() - STARTED:7.1f} s ({time.process_time():6.1f} s of processor time)"
    print(f"after {stage:26} {seconds}   peak {peak:5.2f} GiB, {anonymous:5.2f} GiB anonymous", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=1, help="k-means iterations per round over all embeddings")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--neighbors", type=int, help="search this number of neighbors, and do not cluster")
    parser.add_argument("--fit", choices=("disk", "memory"), help="train, with embeddings on disk or in memory")
    parser.add_argument("--folder", type=Path, help="folder of the temporary file (default: the system's)")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.fit is not None:
        with ANONYMOUS_MEMORY, tempfile.TemporaryDirectory(dir=args.folder) as folder:
            embeddings_folder = Path(folder) if args.fit == "disk" else None
            train(args.rows, args.dimensions, args.clusters, args.iterations, args.rounds, folder=embeddings_folder)
        return
    if args.file is not None:
        with ANONYMOUS_MEMORY:
            if args.neighbors is None:
                cluster(args.file, args.clusters, args.iterations, args.rounds)
            else:
                search(args.file, args.neighbors)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "embeddings.npy"
        write_clusters(path, args.rows, args.dimensions, args.clusters)
        size = path.stat().st_size / 2**30
        print(f"{args.rows:,} x {args.dimensions} float32, a file of {size:.2f} GiB", flush=True)
        if args.neighbors is None:
            print(f"k = {args.clusters}, k-means with {args.iterations} iterations", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--file", str(path)]
        subprocess.run(command, check=True)  # noqa: S603 (this file)


if __name__ == "__main__":
    main()
