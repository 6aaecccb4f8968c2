"""What training costs: `fit` beside a bare loop, rotation and ranking beside plain UDML, and the metric loss."""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from speed_measuring import Row, clustered, in_turn, now, seconds
from speed_others import BareLoop, loop_multi_similarity
from speed_sizes import Sizes
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    UDMLSSLoss,
    fit,
    parameter_groups,
    rotate_four_ways,
)
from udmlss.data import glyphs
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.models.batch_norm import frozen_batch_norm
from udmlss.types import LaterRounds

P, K, TURNED, DIMENSIONS = 16, 5, 16, 128


def build(sizes: Sizes) -> tuple[nn.Module, nn.Linear]:
    """Return a trunk for glyphs, the same each time, and an embedder."""
    width = sizes.width
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    trunk = nn.Sequential(
        block(1, width), block(width, width), block(width, 2 * width), block(2 * width, 2 * width), nn.Flatten()
    )
    return trunk, nn.Linear(features_of(sizes), DIMENSIONS)


def features_of(sizes: Sizes) -> int:
    return 8 * sizes.width  # twice the width, in 2 x 2 places


@cache
def images_of(sizes: Sizes) -> Tensor:
    return glyphs("train").images[: sizes.images]


def clusters_of(sizes: Sizes) -> int:
    return max(P, sizes.images // 10)


def criterion_of(*more: nn.Module, weights: tuple[float, ...] = ()) -> UDMLSSLoss:
    """Return the released metric loss with its miner, and what goes beside it."""
    pairs, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
    if not more:
        return UDMLSSLoss(pairs, miner=miner)
    return UDMLSSLoss(losses.MultipleLosses([pairs, *more], miners=[miner, *[None] * len(more)], weights=[1, *weights]))


def lines_of_fit(sizes: Sizes) -> list[Row]:
    return [_beside_bare_loop(sizes, "fit", "on the CPU", "cpu")]


def lines_of_gpu(sizes: Sizes) -> list[Row]:
    if not torch.cuda.is_available():
        return [Row("gpu", "`fit` on a GPU", "a bare loop", [], [], aim=1.03, note="waits for a GPU")]
    fast = {"bfloat16": True, "channels_last": True}
    return [
        _beside_bare_loop(sizes, "gpu", "on the GPU", "cuda"),
        _beside_bare_loop(
            sizes, "gpu", "on the GPU with bfloat16, channels-last and a compiled trunk", "cuda", compiled=True, **fast
        ),
    ]


def _beside_bare_loop(sizes: Sizes, line: str, where: str, device: str, *, compiled: bool = False, **how: bool) -> Row:
    images, n_clusters = images_of(sizes), clusters_of(sizes)

    def network() -> tuple[nn.Module, nn.Linear, RotationPretextHead]:
        trunk, embedder = (part.to(device) for part in build(sizes))
        return torch.compile(trunk) if compiled else trunk, embedder, RotationPretextHead(features_of(sizes)).to(device)

    bare = BareLoop(*network(), images, n_clusters, P, K, TURNED, **how)
    trunk, embedder, head = network()
    model = EmbeddingModel(trunk, embedder)
    labeler = partial(ClusterPseudoLabeler, n_clusters)
    measures = (
        _seconds_from_start([model, head], lambda: _fit(model, head, images, labeler(), sizes, **how)),
        _seconds_from_start([bare.trunk, bare.embedder, bare.head], lambda: bare(sizes.steps, sizes.relabel_every)),
    )
    ours, theirs = in_turn(sizes.pairs, *measures)
    note = f"{len(images)} images, {sizes.steps} steps of {P * K}, re-clustered every {sizes.relabel_every}"
    return Row(line, f"`fit` {where}", "a bare loop with the same passes", ours, theirs, aim=1.03, note=note)


def _fit(
    model: EmbeddingModel,
    head: RotationPretextHead,
    images: Tensor,
    labeler: ClusterPseudoLabeler,
    sizes: Sizes,
    *,
    later_rounds: LaterRounds = "embeddings",
    bfloat16: bool = False,
    channels_last: bool = False,
) -> None:
    criterion = criterion_of()
    fit(
        model,
        images,
        labeler=labeler,
        criterion=criterion,
        rotation_head=head,
        optimizer=AdamW(parameter_groups(model, criterion, head)),
        max_steps=sizes.steps,
        relabel_every=sizes.relabel_every,
        later_rounds=later_rounds,
        freeze_batch_norm=False,
        precision="bfloat16" if bfloat16 else "float32",
        channels_last=channels_last,
        progress=False,
    )


def _seconds_from_start(parts: list[nn.Module], run: Callable[[], None]) -> Callable[[], float]:
    """Return a measure of the run that begins each time with the weights that the parts have now."""
    begun = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]

    def measure() -> float:
        for part, state in zip(parts, begun, strict=True):
            part.load_state_dict(state)
        return seconds(run)

    return measure


class Clock(LambdaLR):
    """A scheduler that changes nothing and notes when each step ended."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.ticks: list[float] = []
        super().__init__(optimizer, lambda _: 1.0)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self.ticks.append(now())


def seconds_per_step(
    sizes: Sizes,
    *,
    turned: int | None = None,
    auxiliary: nn.Module | None = None,
    criterion: UDMLSSLoss | None = None,
) -> float:
    """Return the median time of a step of `fit` within a round."""
    trunk, embedder = build(sizes)
    model, criterion = EmbeddingModel(trunk, embedder), criterion or criterion_of()
    head = None if turned is None else RotationPretextHead(features_of(sizes))
    optimizer = AdamW(parameter_groups(model, criterion, head, auxiliary=auxiliary))
    clock = Clock(optimizer)
    fit(
        model,
        images_of(sizes)[: 10 * P * K],
        labeler=ClusterPseudoLabeler(2 * P),
        criterion=criterion,
        rotation_head=head,
        rotation_images=turned or TURNED,
        auxiliary=auxiliary,
        optimizer=optimizer,
        scheduler=clock,
        max_steps=max(3, sizes.steps // 2),
        relabel_every=max(3, sizes.steps // 2),
        first_round="embeddings",
        freeze_batch_norm=False,
        progress=False,
    )
    return median(late - early for early, late in pairwise(clock.ticks[1:]))  # the first tick is before the start


def lines_of_remembered(sizes: Sizes) -> list[Row]:
    """Train by clusters of the embeddings that the steps remember, and by those of a look at all images."""
    trunk, embedder = build(sizes)
    model, head = EmbeddingModel(trunk, embedder), RotationPretextHead(features_of(sizes))
    run = partial(_fit, model, head, images_of(sizes), sizes=sizes)
    n_clusters = clusters_of(sizes)
    ours, theirs = in_turn(
        sizes.pairs,
        _seconds_from_start([model, head], lambda: run(ClusterPseudoLabeler(n_clusters), later_rounds="remembered")),
        _seconds_from_start([model, head], lambda: run(ClusterPseudoLabeler(n_clusters))),
    )
    note = f"a round draws {sizes.relabel_every * P * K} images, a look is at {sizes.images}, some of them twice"
    return [Row("remembered", "`fit` with remembered embeddings", "`fit`", ours, theirs, note=note)]


def lines_of_rotation(sizes: Sizes) -> list[Row]:
    plain, some, every = in_turn(
        sizes.pairs,
        partial(seconds_per_step, sizes),
        partial(seconds_per_step, sizes, turned=TURNED),
        partial(seconds_per_step, sizes, turned=P * K),
    )
    step, passes = "a step of `fit` with {} of 80 images turned", "{} times the images, batch norm training"
    return [
        Row("rotation", step.format(TURNED), "plain UDML", some, plain, note=passes.format(1.8)),
        Row("rotation", step.format(80), "plain UDML", every, plain, note=passes.format(5)),
        *_joined(sizes),
    ]


def _joined(sizes: Sizes) -> list[Row]:
    """Hold other passes of plain and turned images against `fit`'s, batch norm frozen: the gradients are the same."""
    trunk, embedder = build(sizes)
    model, head, criterion = EmbeddingModel(trunk, embedder), RotationPretextHead(features_of(sizes)), criterion_of()
    images, labels = images_of(sizes)[: P * K], torch.arange(P).repeat_interleave(K)
    gradients: dict[Any, Tensor] = {}
    model(images)  # batch norm is frozen with statistics worth keeping

    def step(features: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]) -> None:
        model.zero_grad()
        plain, turned = features(trunk, images)
        turns = torch.arange(4).repeat_interleave(TURNED)
        criterion(model.embed_features(plain), labels, head(turned), turns).backward()
        gradients[features] = torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None])

    def measure(features: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]) -> float:
        return median(seconds(partial(step, features)) for _ in range(max(1, sizes.steps // 5)))

    others = {"in two passes, upright twice": upright_twice, "in one pass": one_pass}
    with frozen_batch_norm(model):
        model.train()
        ours, *theirs = in_turn(sizes.pairs, *(partial(measure, way) for way in (upright_once, *others.values())))
    scale = gradients[upright_once].abs().max()
    for way in others.values():
        torch.testing.assert_close(gradients[way] / scale, gradients[upright_once] / scale, atol=1e-4, rtol=0)
    note = "forward and backward, batch norm frozen, the gradients equal"
    beside = "the same in two passes, upright once, as in `fit`"
    return [
        Row("rotation", f"plain and turned images {how}", beside, took, ours, note=note)
        for how, took in zip(others, theirs, strict=True)
    ]


def upright_once(trunk: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    plain, turned = trunk(images), trunk(rotate_four_ways(images[:TURNED])[0][TURNED:])
    return plain, torch.cat([plain[:TURNED], turned])


def upright_twice(trunk: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return trunk(images), trunk(rotate_four_ways(images[:TURNED])[0])


def one_pass(trunk: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    features = trunk(torch.cat([images, rotate_four_ways(images[:TURNED])[0][TURNED:]]))
    return features[: len(images)], torch.cat([features[:TURNED], features[len(images) :]])


def lines_of_ranking(sizes: Sizes) -> list[Row]:
    def synthesis() -> UDMLSSLoss:
        return criterion_of(SynthesisRankingLoss(DIMENSIONS, anchor_weight=0), weights=(0.23,))

    plain, distorted, synthetic = in_turn(
        sizes.pairs,
        partial(seconds_per_step, sizes),
        lambda: seconds_per_step(sizes, auxiliary=SelfSupervisedRanking(features_of(sizes))),
        lambda: seconds_per_step(sizes, criterion=synthesis()),
    )
    kinds = {"SelfSupervisedRanking": distorted, "SynthesisRankingLoss": synthetic}
    return [
        Row("ranking", f"a step of `fit` with `{name}`", "plain UDML", took, plain, note=_images_a_second(took, plain))
        for name, took in kinds.items()
    ]


def _images_a_second(took: list[float], plain: list[float]) -> str:
    with_it, without = (P * K / median(times) for times in (took, plain))
    return f"{with_it:.0f} images a second beside {without:.0f}"


def lines_of_metric_loss(sizes: Sizes) -> list[Row]:
    return [_metric_loss(batch, sizes.pairs) for batch in sizes.loss_batches]


def _metric_loss(batch: int, pairs: int) -> Row:
    criterion = criterion_of()
    embeddings = clustered(batch, 512, batch // K).requires_grad_()
    labels = torch.arange(batch) % (batch // K)
    repeats = 5

    def measure(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        return median(
            seconds(lambda: loss(functional.normalize(embeddings), labels).backward()) for _ in range(repeats)
        )

    ours, theirs = in_turn(pairs, partial(measure, criterion), partial(measure, loop_multi_similarity))
    torch.testing.assert_close(criterion(embeddings, labels), loop_multi_similarity(embeddings, labels))
    note = "forward and backward at 512-d, the values equal"
    return Row("metric-loss", f"`UDMLSSLoss`, batch {batch}", "the same by a loop over rows", ours, theirs, note=note)
