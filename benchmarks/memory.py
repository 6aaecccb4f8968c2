"""What clustering many embeddings takes: seconds and the most memory, of a process that maps them from a file.

    python benchmarks/memory.py --rows 10000000 --dimensions 64 --clusters 1000 --iterations 1
    python benchmarks/memory.py --rows 1000000 --dimensions 512 --clusters 1000 --iterations 1 --fit disk

Random blobs are written to the file part by part. A second process labels them by `ClusterPseudoLabeler` and prints
after each stage the seconds so far and two peaks: of resident memory, in which pages of the file that were read count,
and of what lies in memory alone, which the system cannot give to others. `--fit` trains instead, one step a round, on
as many random images, and keeps their embeddings on a disk or in memory.
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

PART = 2**16
STARTED = time.perf_counter()


def write_blobs(path: Path, rows: int, dimensions: int, clusters: int, dtype: str) -> None:
    draws = np.random.default_rng(0)
    centers = draws.standard_normal((clusters, dimensions), dtype=np.float32)
    with path.open("wb") as file:  # mapped, its pages would count in what the other process starts with
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, dimensions)}
        np.lib.format.write_array_header_1_0(file, header)
        for begin in range(0, rows, PART):
            group = draws.integers(clusters, size=min(PART, rows - begin))
            part = centers[group] + 0.5 * draws.standard_normal((len(group), dimensions), dtype=np.float32)
            file.write((part / np.linalg.norm(part, axis=1, keepdims=True)).astype(dtype).tobytes())


def cluster(path: Path, clusters: int, iterations: int, rounds: int, *, judge: bool) -> None:
    import torch  # noqa: PLC0415 (the process that writes does without)

    from udmlss import ClusterPseudoLabeler, label_free_scores  # noqa: PLC0415

    embeddings = torch.from_numpy(np.load(path, mmap_mode="r+"))
    labeler = ClusterPseudoLabeler(clusters, max_iter=iterations)
    report("imports")
    for number in range(rounds):
        pseudo = labeler.label(embeddings)
        report(f"round {number}, {pseudo.n_clusters} clusters")
    if judge:
        of = torch.arange(0, len(embeddings), max(1, len(embeddings) // 1000))[:1000]
        label_free_scores(embeddings, embeddings[of].float(), of)
        report("judging")


def train(rows: int, dimensions: int, labels: dict[str, int], rounds: int, folder: Path | None) -> None:
    import torch  # noqa: PLC0415 (as above)
    from pytorch_metric_learning.losses import ContrastiveLoss  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from udmlss import ClusterPseudoLabeler, EmbeddingModel, UDMLSSLoss, fit  # noqa: PLC0415

    class Noise(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return rows

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.randn(1, 4, 4)

    report("imports")
    fit(
        EmbeddingModel(nn.Flatten(), nn.Linear(16, dimensions)),
        Noise(),
        labeler=ClusterPseudoLabeler(**labels),
        criterion=UDMLSSLoss(ContrastiveLoss()),
        first_round="embeddings",
        max_steps=rounds,
        relabel_every=1,
        embeddings_folder=folder,
        callbacks=[lambda made: report(f"round {made.round}")],
        progress=False,
    )


class Watch:
    """Looks every 20 ms at how much of this process lies in memory alone, in KiB."""

    def __init__(self) -> None:
        self.peak = 0

    def start(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max(self.peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.02)


WATCH = Watch()


def report(stage: str) -> None:
    peak, alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, WATCH.peak / 2**20  # Linux counts in KiB
    since, used = time.perf_counter() - STARTED, time.process_time()
    seconds = f"{since:7.1f} s ({used:6.1f} s of a processor)"
    print(f"after {stage:26} {seconds}   peak {peak:5.2f} GiB, {alone:5.2f} in memory alone", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=1, help="of k-means in a round, after those on its sample")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--judge", action="store_true", help="score the embeddings without labels, too")
    parser.add_argument("--fit", choices=("disk", "memory"), help="train, with the embeddings there")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--folder", type=Path, help="where the file is made, and deleted; default: a temporary folder")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit is not None:
        WATCH.start()
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            where = Path(folder) if args.fit == "disk" else None
            labels = {"n_clusters": args.clusters, "max_iter": args.iterations}
            train(args.rows, args.dimensions, labels, args.rounds, where)
        return
    if args.file is not None:
        WATCH.start()
        cluster(args.file, args.clusters, args.iterations, args.rounds, judge=args.judge)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "embeddings.npy"
        write_blobs(path, args.rows, args.dimensions, args.clusters, args.dtype)
        print(f"{args.rows:,} x {args.dimensions} {args.dtype}, a file of {path.stat().st_size / 2**30:.2f} GiB")
        print(f"k = {args.clusters}, {args.iterations} iterations of k-means", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--file", str(path)]
        subprocess.run(command, check=True)  # noqa: S603 (this file)


if __name__ == "__main__":
    main()
