"""Time of an optimizer step: the cost of settings and losses."""

import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import pairwise
from statistics import median
from unittest.mock import patch

import torch
from pytorch_metric_learning import losses, miners
from speed_baselines import loop_multi_similarity
from speed_measurements import Row, Sizes, cost_in_process, measure_alternately, now, random_clusters, seconds
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torchvision.models import mobilenet_v2

from udmlss import ClusterPseudoLabeler, EmbeddingModel, RotationPretextHead, Rounds, UDMLSSLoss, fit, parameter_groups
from udmlss.data import glyphs
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.results import StepReport
from udmlss.training.run import Run
from udmlss.training.step import TrainingStep

P, K, ROTATED, DIMENSIONS = 16, 5, 16, 128
ALLOCATOR = {  # glibc's allocator then reuses memory in the next step instead of returning it to the system
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


def build_network(sizes: Sizes) -> tuple[nn.Module, nn.Linear]:
    """Return a trunk for glyphs and an embedder, always with the same weights."""
    width = sizes.width
    torch.manual_seed(0)

    def block(in_channels: int, out_channels: int) -> nn.Module:
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(2))

    trunk = nn.Sequential(
        block(1, width), block(width, width), block(width, 2 * width), block(2 * width, 2 * width), nn.Flatten()
    )
    return trunk, nn.Linear(n_features(sizes), DIMENSIONS)


def n_features(sizes: Sizes) -> int:
    return 8 * sizes.width  # maps of 2 x 2 pixels with twice the width as channels


@cache
def images_of(sizes: Sizes) -> Tensor:
    return glyphs("train").images[: sizes.images]


def n_clusters(sizes: Sizes) -> int:
    return max(2 * P, sizes.images // 10)  # enough clusters of several images for a batch


def build_criterion(*others: nn.Module, weights: tuple[float, ...] = ()) -> UDMLSSLoss:
    """Return the released metric loss with its miner, plus other losses."""
    pairs, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
    if not others:
        return UDMLSSLoss(pairs, miner=miner)
    all_miners = [miner, *[None] * len(others)]
    return UDMLSSLoss(losses.MultipleLosses([pairs, *others], miners=all_miners, weights=[1, *weights]))


class StepTimes:
    """A callback that records the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, _report: StepReport) -> None:
        self.times.append(now())


def seconds_per_step(
    sizes: Sizes,
    *,
    max_images: int | None = None,
    auxiliary: nn.Module | None = None,
    criterion: UDMLSSLoss | None = None,
) -> float:
    """Return the median time of a step of `fit`, without rotation loss if `max_images` is None."""
    model, criterion = EmbeddingModel(*build_network(sizes)), criterion or build_criterion()
    head = None if max_images is None else RotationPretextHead(n_features(sizes), max_images=max_images)
    steps, recorded = max(3, sizes.steps // 2), StepTimes()
    fit(
        model,
        images_of(sizes)[: 10 * P * K],
        labeler=ClusterPseudoLabeler(2 * P),
        criterion=criterion,
        rotation_head=head,
        auxiliary=auxiliary,
        optimizer=AdamW(parameter_groups(model, criterion, head, auxiliary=auxiliary)),
        max_steps=steps,
        relabel_every=steps,
        cluster_on="embeddings",
        freeze_batch_norm=False,
        average_weights=False,
        callbacks=recorded,
        progress=False,
    )
    return median(late - early for early, late in pairwise(recorded.times))


def lines_of_cpu(sizes: Sizes) -> list[Row]:
    """Compare settings of a training step on the CPU, each measured in a new process."""
    plain, channels_last, allocator, bfloat16 = [], [], [], []
    for _ in range(sizes.pairs):
        plain.append(_step_seconds(sizes, channels_last=False))
        channels_last.append(_step_seconds(sizes, channels_last=True))
        allocator.append(_step_seconds(sizes, channels_last=True, environment=ALLOCATOR))
        bfloat16.append(_step_seconds(sizes, channels_last=True, bfloat16=True))
    variables = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
    note = f"MobileNetV2, {P * K} images of {sizes.pixels} pixels, forward and backward"
    return [
        Row("cpu", "a step with channels-last", "a step without", channels_last, plain, note=note),
        Row("cpu", f"with channels-last and {variables}", "with channels-last", allocator, channels_last, note=note),
        Row("cpu", "with channels-last in bfloat16", "with channels-last", bfloat16, channels_last, note=note),
    ]


def _step_seconds(
    sizes: Sizes, *, channels_last: bool, bfloat16: bool = False, environment: Mapping[str, str] | None = None
) -> float:
    with patch.dict(os.environ, environment or {}):
        found: float = cost_in_process(prepare_step, sizes, channels_last, bfloat16).found
    return found


def prepare_step(sizes: Sizes, channels_last: bool, bfloat16: bool) -> Callable[[], float]:  # noqa: FBT001 (arguments of a process)
    """Return a function that returns the median time of a step."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = mobilenet_v2().to(memory_format=memory_format)
    images = torch.randn(P * K, 3, sizes.pixels, sizes.pixels).to(memory_format=memory_format)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            outputs = model(images)
        outputs.float().square().mean().backward()
        model.zero_grad()

    def measure() -> float:
        step()  # the first step chooses kernels and allocates memory
        return median(seconds(step) for _ in range(sizes.cpu_steps))

    return measure


def lines_of_chunks(sizes: Sizes) -> list[Row]:
    """Compare a step in chunks with one forward and backward pass of the whole batch, on the same images."""
    torch.manual_seed(0)
    trunk = nn.Sequential(mobilenet_v2().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EmbeddingModel(trunk, nn.Linear(1280, DIMENSIONS))
    model.to(memory_format=torch.channels_last).train()
    criterion, n_images = build_criterion(), sizes.chunk_batch
    images = torch.rand(n_images, 3, sizes.pixels, sizes.pixels).to(memory_format=torch.channels_last)
    labels = torch.arange(n_images) // K
    optimizer = AdamW(parameter_groups(model, criterion))
    rounds = Rounds(model, images, ClusterPseudoLabeler(2), max_steps=1)
    run = Run(rounds, {"model": model, "criterion": criterion}, optimizer, None, [])
    step = TrainingStep(run, freeze_batch_norm=False, precision="float32", clip_norm=None, chunk_size=P * K)

    def whole() -> None:
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()

    ours, theirs = measure_alternately(
        sizes.pairs, lambda: seconds(lambda: step(iter([(images, labels)]))), lambda: seconds(whole)
    )
    note = f"MobileNetV2, {n_images} images of {sizes.pixels} pixels in chunks of {P * K}"
    return [Row("chunks", "a step of `fit` with `chunk_size`", "the whole batch", ours, theirs, aim=1.35, note=note)]


def lines_of_rotation(sizes: Sizes) -> list[Row]:
    plain, some, every = measure_alternately(
        sizes.pairs,
        partial(seconds_per_step, sizes),
        partial(seconds_per_step, sizes, max_images=ROTATED),
        partial(seconds_per_step, sizes, max_images=P * K),
    )
    step, note = "a step of `fit` with {} of 80 images rotated", "{} times the images, batch norm in training mode"
    return [
        Row("rotation", step.format(ROTATED), "UDML", some, plain, note=note.format(1.8)),
        Row("rotation", step.format(80), "UDML", every, plain, note=note.format(5)),
    ]


def lines_of_ranking(sizes: Sizes) -> list[Row]:
    def synthesis() -> UDMLSSLoss:
        return build_criterion(SynthesisRankingLoss(DIMENSIONS, anchor_weight=0), weights=(0.23,))

    plain, image_ranking, synthesis_ranking = measure_alternately(
        sizes.pairs,
        partial(seconds_per_step, sizes),
        lambda: seconds_per_step(sizes, auxiliary=SelfSupervisedRanking(n_features(sizes))),
        lambda: seconds_per_step(sizes, criterion=synthesis()),
    )
    measured = {"SelfSupervisedRanking": image_ranking, "SynthesisRankingLoss": synthesis_ranking}
    return [
        Row("ranking", f"a step of `fit` with `{name}`", "UDML", times, plain, note=_images_per_second(times, plain))
        for name, times in measured.items()
    ]


def _images_per_second(*times: list[float]) -> str:
    ours, theirs = (P * K / median(each) for each in times)
    return f"{ours:.0f} and {theirs:.0f} images per second"


def lines_of_metric_loss(sizes: Sizes) -> list[Row]:
    return [_metric_loss(batch, sizes.pairs) for batch in sizes.loss_batches]


def _metric_loss(batch: int, pairs: int) -> Row:
    criterion = build_criterion()
    embeddings = random_clusters(batch, 512, batch // K).requires_grad_()
    labels = torch.arange(batch) % (batch // K)

    def measure(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        return median(seconds(lambda: loss(functional.normalize(embeddings), labels).backward()) for _ in range(5))

    ours, theirs = measure_alternately(pairs, partial(measure, criterion), partial(measure, loop_multi_similarity))
    torch.testing.assert_close(criterion(embeddings, labels), loop_multi_similarity(embeddings, labels))
    note = "forward and backward, 512 dimensions; the values are equal"
    return Row("metric-loss", f"`UDMLSSLoss`, batch {batch}", "the same by a loop over rows", ours, theirs, note=note)
