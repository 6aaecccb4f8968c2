"""Time of whole trainings: `fit` and a bare loop, and the fraction of `fit` that is not spent on its steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from speed_baselines import ITERATIONS, BareLoop, faiss_k_means
from speed_measurements import Row, Sizes, measure_alternately, seconds, timed_calls
from speed_training import ROTATED, K, P, build_criterion, build_network, images_of, n_clusters, n_features
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import Dataset, Subset
from torchvision.models import mobilenet_v2

from udmlss import EmbeddingModel, Epochs, RotationPretextHead, Rounds, fit, parameter_groups
from udmlss.training import rounds, step

IMAGES_PER_CLASS, GRID = 40, 8


@dataclass(frozen=True)
class Speedups:
    """Settings that make training faster on a GPU."""

    compiled: bool = False
    bfloat16: bool = False
    channels_last: bool = False


FLOAT32 = Speedups()


def lines_of_fit(sizes: Sizes) -> list[Row]:
    return [compare_with_bare_loop(sizes, "fit", "on the CPU", "cpu")]


def compare_with_bare_loop(sizes: Sizes, line: str, where: str, device: str, speedups: Speedups = FLOAT32) -> Row:
    """Compare the time of `fit` with that of a bare loop with the same passes. Both cluster by faiss from scratch."""
    images = images_of(sizes)
    parts = build_parts(sizes, device, speedups)
    options = {"bfloat16": speedups.bfloat16, "channels_last": speedups.channels_last}
    bare = BareLoop(*parts, images, n_clusters(sizes), P, K, ROTATED, **options)
    ours, theirs = measure_alternately(
        sizes.pairs,
        _measure_of_fit(sizes, device, speedups),
        _seconds_from_start(parts, lambda: bare(sizes.steps, sizes.relabel_every)),
    )
    return Row(
        line,
        f"`fit` {where}",
        "a bare loop with the same passes and clusterer",
        ours,
        theirs,
        aim=1.03,
        note=_note(sizes),
    )


def compare_speedups(sizes: Sizes, line: str, where: str, device: str, speedups: Speedups) -> Row:
    """Compare the time of `fit` with some settings with that of `fit` in float32 without them."""
    measures = [_measure_of_fit(sizes, device, each) for each in (speedups, FLOAT32)]
    ours, theirs = measure_alternately(sizes.pairs, *measures)
    return Row(line, f"`fit` {where}", "`fit` in float32 without them", ours, theirs, aim=1.0, note=_note(sizes))


def _note(sizes: Sizes) -> str:
    counts = f"{sizes.steps} steps of {P * K} images, {sizes.relabel_every} steps per round"
    return f"{len(images_of(sizes))} images, {counts}"


def build_parts(sizes: Sizes, device: str, speedups: Speedups) -> tuple[nn.Module, nn.Linear, RotationPretextHead]:
    """Return a trunk, an embedder and a rotation head, always with the same weights."""
    trunk, embedder = (part.to(device) for part in build_network(sizes))
    if speedups.channels_last:
        trunk = trunk.to(memory_format=torch.channels_last)
    head = RotationPretextHead(n_features(sizes), max_images=ROTATED).to(device)
    return torch.compile(trunk) if speedups.compiled else trunk, embedder, head


def _measure_of_fit(sizes: Sizes, device: str, speedups: Speedups) -> Callable[[], float]:
    """Return a measure of the time of `fit`, each time from the same weights."""
    trunk, embedder, head = build_parts(sizes, device, speedups)
    model = EmbeddingModel(trunk, embedder)
    train = partial(_fit, model, head, images_of(sizes), sizes, bfloat16=speedups.bfloat16)
    return _seconds_from_start([model, head], train)


def _fit(model: EmbeddingModel, head: RotationPretextHead, images: Tensor, sizes: Sizes, *, bfloat16: bool) -> None:
    criterion, k = build_criterion(), n_clusters(sizes)
    fit(
        model,
        images,
        labeler=lambda rows: faiss_k_means(rows.cpu().numpy(), k, ITERATIONS),
        criterion=criterion,
        rotation_head=head,
        optimizer=AdamW(parameter_groups(model, criterion, head, trunk_lr=1e-4, lr=1e-3)),
        clusters_per_batch=16,
        views=1,
        max_steps=sizes.steps,
        relabel_every=sizes.relabel_every,
        freeze_batch_norm=False,
        average_weights=False,
        precision="bfloat16" if bfloat16 else "float32",
        progress=False,
    )


def _seconds_from_start(parts: Sequence[nn.Module], function: Callable[[], None]) -> Callable[[], float]:
    """Return a measure of the function's time that first restores the present weights of the parts."""
    states = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]

    def measure() -> float:
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        return seconds(function)

    return measure


def lines_of_share(sizes: Sizes) -> list[Row]:
    """Measure the fraction of the time of `fit` outside of the forward and backward passes of its steps."""
    n, pixels = sizes.share
    images = Patterns(n, pixels)
    model = EmbeddingModel.from_trunk(calibrated_trunk(images), Subset(images, range(min(n, 2000))), progress=False)
    parts = {
        "forward": (step._Losses, "forward"),  # noqa: SLF001 (the library does not measure its parts)
        "loading": (step.TrainingStep, "_load"),  # which is a part of the forward pass
        "backward": (Tensor, "backward"),
        "embedding": (rounds, "take_snapshot"),
        "clustering": (Rounds, "_cluster"),
    }
    with timed_calls(parts) as times:
        total = seconds(lambda: fit(model, images, max_steps=Epochs(1), refit_embedder=False, progress=False))
    outside = total - (times["forward"] - times["loading"] + times["backward"])
    listed = ", ".join(f"{name} {times[name]:.1f} s" for name in ("embedding", "clustering", "loading"))
    return [
        Row(
            "share",
            "time of `fit` outside of the forward and backward passes of its steps",
            "the whole time",
            [outside],
            [total],
            aim=0.35,
            note=f"defaults, one round of {n:,} images of {pixels} pixels, MobileNetV2, without the new embedder "
            f"after eight rounds; {listed}",
            more={"parts": times},
        )
    ]


class Patterns(Dataset[Tensor]):
    """Generated images: one coarse pattern for each class, with noise, stored at a low resolution.

    Args:
        n: Number of images.
        pixels: Height and width, a multiple of 8.
    """

    def __init__(self, n: int, pixels: int) -> None:
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randint(0, 128, (max(16, n // IMAGES_PER_CLASS), 3, GRID, GRID), generator=generator)
        noise = torch.randint(0, 128, (n, 3, GRID, GRID), generator=generator)
        self.codes = (patterns[torch.arange(n) % len(patterns)] + noise).byte()
        self.scale = pixels // GRID

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Tensor:
        code = self.codes[index].float().div_(255)
        return code.repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)


def calibrated_trunk(images: Dataset[Tensor]) -> nn.Module:
    """Return MobileNetV2 whose batch normalization has the statistics of the images, as if it were pretrained."""
    torch.manual_seed(0)
    trunk = nn.Sequential(mobilenet_v2().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics are the mean over all batches, without the initial ones
    with torch.no_grad():
        for start in range(0, 320, 32):
            trunk.train()(torch.stack([images[(start + number) % len(images)] for number in range(32)]))
    return trunk
