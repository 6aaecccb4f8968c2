"""Train a small network from scratch, without a download and without labels, in some minutes.

    python examples/quickstart.py

The network is trained on images of Latin characters and scored on Greek, Cyrillic, Armenian and Georgian ones. The
scores measure how well it retrieves images of the same character. Two figures are saved in runs/quickstart.
"""

import argparse
from pathlib import Path

import torch
from pictures import save_curves, save_neighbors
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    Epochs,
    FitResult,
    RotationPretextHead,
    RoundReport,
    UDMLSSLoss,
    embed,
    evaluate_embeddings,
    fit,
    metrics,
    parameter_groups,
)
from udmlss.data import glyphs


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


def train(model: EmbeddingModel, epochs: float, head: RotationPretextHead | None) -> tuple[FitResult, list[float]]:
    """Train the model in place; return the result of `fit`, and R@1 on the test images after every round."""
    criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    test, recalls = glyphs("test"), []

    def score_round(_report: RoundReport) -> None:
        recalls.append(metrics.recall_at_k(embed(model, test), test.labels, ks=1)[1])

    result = fit(
        model,
        glyphs("train", transform=augment),
        cluster_images=glyphs("train"),
        labeler=ClusterPseudoLabeler(500),
        criterion=criterion,
        rotation_head=head,
        optimizer=torch.optim.AdamW(parameter_groups(model, criterion, head, trunk_lr=1e-3, lr=1e-3)),
        clusters_per_batch=16,
        views=1,
        max_steps=Epochs(epochs),
        relabel_every=Epochs(0.5),
        from_scratch=True,
        average_weights=False,
        callbacks=score_round,
    )
    return result, recalls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=4, help="length of each training (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the figures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    test = glyphs("test")
    models = {"untrained network": build_model(), "UDML": build_model(), "UDML-SS": build_model()}
    runs = {
        "UDML": train(models["UDML"], args.epochs, head=None),
        "UDML-SS": train(models["UDML-SS"], args.epochs, head=RotationPretextHead(512)),
    }
    embeddings = {"raw pixels": test.images.flatten(1)} | {name: embed(model, test) for name, model in models.items()}
    print("\nScores on scripts that training did not see:\n")
    for name, rows in embeddings.items():
        print(f"{name:18}", evaluate_embeddings(rows, test.labels))

    before_and_after = {name: embeddings[name] for name in ("untrained network", "UDML-SS")}
    save_neighbors(args.out / "neighbors.png", test.images, test.labels, before_and_after)
    histories = {name: result.history for name, (result, _) in runs.items()}
    save_curves(args.out / "curves.png", histories, {name: recalls for name, (_, recalls) in runs.items()})
    print(f"\nSaved {args.out / 'neighbors.png'} and {args.out / 'curves.png'}")


if __name__ == "__main__":
    main()
