"""Time of a training step on several ranks. Run by torchrun, the program measures; speed.py starts it.

torchrun --nproc-per-node 2 benchmarks/speed_ranks.py FILE      # the times of rank 0
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pytorch_metric_learning import losses, miners
from speed_measurements import Row, Sizes, measure_alternately, seconds
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import mobilenet_v2

from udmlss import ClusterPseudoLabeler, EmbeddingModel, Rounds, UDMLSSLoss
from udmlss.distributed import is_rank_zero, process_group, rank, world_size
from udmlss.training.run import Run
from udmlss.training.step import TrainingStep

P, K, DIMENSIONS = 8, 5, 128
SIZES_VARIABLE = "UDMLSS_SPEED_SIZES"


def lines_of_ranks(sizes: Sizes) -> list[Row]:
    """Compare steps of `fit` on several ranks with those of a bare loop, and with one rank that does all the work."""
    return [row for n_ranks in sizes.ranks for row in _rows(sizes, n_ranks)]


def _rows(sizes: Sizes, n_ranks: int) -> list[Row]:
    n_cores = len(os.sched_getaffinity(0))
    ours, theirs = _times(sizes, n_ranks, n_images=P * K, n_threads=1)
    alone, _ = _times(sizes, 1, n_images=P * K * n_ranks, n_threads=min(n_ranks, n_cores))
    note = f"MobileNetV2, {P * K} images of {sizes.pixels} pixels and one thread per rank, gloo, {n_cores} cores"
    measured, baseline = f"a step of `fit` on {n_ranks} ranks", "bare DDP and a bare all_gather of embeddings"
    return [
        Row("ranks", measured, baseline, ours, theirs, aim=1.05, note=note),
        Row("ranks", measured, f"a step of `fit` on one rank, {P * K * n_ranks} images", ours, alone, note=note),
    ]


def _times(sizes: Sizes, n_ranks: int, *, n_images: int, n_threads: int) -> list[list[float]]:
    """Return the times of the steps of `fit` and of those of a bare loop, measured by torchrun."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
        threads = {"OMP_NUM_THREADS": str(n_threads)}
        changes = threads | {SIZES_VARIABLE: json.dumps(asdict(sizes)), "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([*command, __file__, str(path), str(n_images)], env=os.environ | changes, check=True)  # noqa: S603 (this file)
        times: list[list[float]] = json.loads(path.read_text())
        return times


def measure_steps(sizes: Sizes, n_images: int) -> list[list[float]]:
    """Return the times of the steps of `fit` and of those of a bare loop, with this number of images on each rank."""
    generator = torch.Generator().manual_seed(rank())
    images = torch.rand(n_images, 3, sizes.pixels, sizes.pixels, generator=generator)
    labels = torch.arange(n_images) // K
    steps = [prepare_step_of_fit(images, labels), prepare_bare_step(images, labels)]
    return measure_alternately(sizes.pairs, *(partial(_seconds_per_step, step, sizes.cpu_steps) for step in steps))


def _seconds_per_step(step: Callable[[], object], n_steps: int) -> float:
    distributed.barrier()  # all ranks start together
    return seconds(lambda: [step() for _ in range(n_steps)]) / n_steps


def prepare_step_of_fit(images: Tensor, labels: Tensor) -> Callable[[], object]:
    model = _build_model()
    criterion = UDMLSSLoss(_build_loss(), miner=miners.MultiSimilarityMiner(0.1))
    rounds = Rounds(model, images, ClusterPseudoLabeler(2), clusters_per_batch=2, samples_per_cluster=2, max_steps=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    run = Run(rounds, {"model": model, "criterion": criterion}, optimizer, None, [])
    step = TrainingStep(run, freeze_batch_norm=False, precision="float32", clip_norm=None)
    return lambda: step(iter([(images, labels)]))


def prepare_bare_step(images: Tensor, labels: Tensor) -> Callable[[], object]:
    parallel = DistributedDataParallel(_build_model())
    loss, miner = _build_loss(), miners.MultiSimilarityMiner(0.1)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-5)
    all_labels = torch.cat([labels] * world_size())

    def step() -> None:
        embeddings = functional.normalize(parallel(images))
        parts = [torch.empty_like(embeddings) for _ in range(world_size())]
        distributed.all_gather(parts, embeddings.detach())
        parts[rank()] = embeddings  # the gradient of the own embeddings only
        gathered = torch.cat(parts)
        optimizer.zero_grad()
        loss(gathered, all_labels, miner(gathered, all_labels)).backward()
        optimizer.step()

    return step


def _build_model() -> EmbeddingModel:
    torch.manual_seed(0)
    trunk = nn.Sequential(mobilenet_v2().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return EmbeddingModel(trunk, nn.Linear(1280, DIMENSIONS)).train()


def _build_loss() -> nn.Module:
    return losses.MultiSimilarityLoss(2, 40, 0.5)


def main(path: str, n_images: str = str(P * K)) -> None:
    sizes = Sizes(**json.loads(os.environ[SIZES_VARIABLE])) if SIZES_VARIABLE in os.environ else Sizes()
    with process_group():
        times = measure_steps(sizes, int(n_images))
        if is_rank_zero():
            Path(path).write_text(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
