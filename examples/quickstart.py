"""Train a small network from scratch, without a download and without labels, in some minutes.

    python examples/quickstart.py

The network is trained on images of Latin characters and scored on Greek, Cyrillic, Armenian and Georgian ones. The
scores measure how well it retrieves images of the same character. Two figures and a report on the training images are
saved in runs/quickstart.
"""

import argparse
from pathlib import Path

import torch
from pictures import save_curves, save_neighbors
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from udmlss import EmbeddingModel, Epochs, RoundReport, embed, evaluate_embeddings, fit, keep_freed_memory, metrics
from udmlss.data import Glyphs, glyphs
from udmlss.report import write_report
from udmlss.search import near_duplicates
from udmlss.training.run import Run


def block(in_channels: int, out_channels: int) -> nn.Module:
    """Return a 3x3 convolution with batch normalization and ReLU that halves the side length."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(2))


def build_trunk(channels: int) -> nn.Module:
    """Return a trunk for images with this number of channels; images of 32 pixels have 512 features."""
    return nn.Sequential(block(channels, 64), block(64, 64), block(64, 128), block(128, 128), nn.Flatten())


def build_model() -> EmbeddingModel:
    """Return the untrained network, always with the same weights."""
    torch.manual_seed(0)
    return EmbeddingModel(build_trunk(channels=1), nn.Linear(512, 128)).to(memory_format=torch.channels_last)


class RandomStrokeWidth(nn.Module):
    """A transform that makes strokes bolder or thinner, each with probability `p`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        sample = torch.rand(()).item()
        if sample < self.p:
            return functional.max_pool2d(image, 2, 1, padding=1)[:, 1:, 1:]
        if sample < 2 * self.p:
            return -functional.max_pool2d(-image, 2, 1, padding=1)[:, 1:, 1:]
        return image


augment = v2.Compose(
    [
        v2.RandomAffine(
            0,
            translate=(0.1, 0.1),
            scale=(0.8, 1.2),
            shear=(-20, 20, -10, 10),
            interpolation=InterpolationMode.BILINEAR,
        ),
        RandomStrokeWidth(0.3),
    ]
)


class RecallPerRound:
    """A callback that measures R@1 on the test images after each round."""

    def __init__(self, test: Glyphs) -> None:
        self.test = test
        self.recalls: list[float] = []

    def on_start(self, run: Run) -> None:
        self.run = run

    def on_round(self, _report: RoundReport) -> None:
        rows = embed(self.run.rounds.model, self.test)  # the averaged weights, which are clustered and returned
        self.recalls.append(metrics.recall_at_k(rows, self.test.labels, ks=1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=7, help="length of the training (default: 7)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()

    model, images, test = build_model(), glyphs("train"), glyphs("test")
    untrained, start_embeddings = embed(model, test), embed(model, images)
    recall_per_round = RecallPerRound(test)
    result = fit(
        model,
        glyphs("train", transform=augment),
        cluster_images=images,
        max_steps=Epochs(args.epochs),
        from_scratch=True,
        label_free=True,  # for the curves of the report
        callbacks=recall_per_round,
    )
    embeddings = {"raw pixels": test.images.flatten(1), "untrained network": untrained, "trained": embed(model, test)}
    print("\nScores on scripts that training did not see:\n")
    for name, rows in embeddings.items():
        print(f"{name:18}", evaluate_embeddings(rows, test.labels))

    before_and_after = {name: embeddings[name] for name in ("untrained network", "trained")}
    save_neighbors(args.out / "neighbors.png", test.images, test.labels, before_and_after)
    save_curves(args.out / "curves.png", result.history, recall_per_round.recalls)
    write_report(
        args.out / "report.html",
        images,
        embed(model, images),
        result.pseudo_labels,
        history=result.history,
        start_embeddings=start_embeddings,
        duplicates=near_duplicates(images.images.flatten(1), threshold=0.99),  # of pixels
        title="Latin characters",
    )
    print(f"\nSaved neighbors.png, curves.png and report.html in {args.out}")


if __name__ == "__main__":
    main()
