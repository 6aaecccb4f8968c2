"""See the library work in some minutes: no download, no labels, a small network from scratch.

    python examples/quickstart.py

Trains on images of Latin characters without their labels, tests on Greek, Cyrillic, Armenian and Georgian ones, and
prints how well images of the same character find each other. Two pictures are saved in runs/quickstart.
"""

import argparse
from pathlib import Path

import torch
from pictures import save_curves, save_neighbours
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


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


def build_trunk(channels: int) -> nn.Module:
    return nn.Sequential(block(channels, 64), block(64, 64), block(64, 128), block(128, 128), nn.Flatten())


def build_model() -> EmbeddingModel:
    torch.manual_seed(0)
    return EmbeddingModel(build_trunk(channels=1), nn.Linear(512, 128))


class ChangeStroke(nn.Module):
    """Makes strokes bolder or thinner, each with probability `p`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        draw = torch.rand(()).item()
        if draw < self.p:
            return functional.max_pool2d(image, 2, 1, padding=1)[:, 1:, 1:]
        if draw < 2 * self.p:
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
        ChangeStroke(0.3),
    ]
)


def train(model: EmbeddingModel, passes: float, head: RotationPretextHead | None) -> tuple[FitResult, list[float]]:
    """Train in place; return what `fit` returns, and R@1 on the test images after every round."""
    criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    test, recalls = glyphs("test"), []

    def watch(_report: RoundReport) -> None:
        recalls.append(metrics.recall_at_k(embed(model, test), test.labels, ks=(1,))[1])

    result = fit(
        model,
        glyphs("train", transform=augment),
        cluster_images=glyphs("train"),
        labeler=ClusterPseudoLabeler(500),
        criterion=criterion,
        rotation_head=head,
        optimizer=torch.optim.AdamW(parameter_groups(model, criterion, head, trunk_lr=1e-3, lr=1e-3)),
        max_steps=Epochs(passes),
        relabel_every=Epochs(0.5),
        freeze_batch_norm=False,
        channels_last=True,
        callbacks=[watch],
    )
    return result, recalls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=float, default=4, help="length of training in passes over the images")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where pictures and models go")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    test = glyphs("test")
    models = {"untrained network": build_model(), "UDML": build_model(), "UDML-SS": build_model()}
    runs = {
        "UDML": train(models["UDML"], args.passes, head=None),
        "UDML-SS": train(models["UDML-SS"], args.passes, head=RotationPretextHead(512)),
    }
    rows = {"raw pixels": test.images.flatten(1)} | {name: embed(model, test) for name, model in models.items()}
    print("\nUnseen scripts, trained without a label:\n")
    for name, embeddings in rows.items():
        print(f"{name:18}", evaluate_embeddings(embeddings, test.labels))

    before_after = {name: rows[name] for name in ("untrained network", "UDML-SS")}
    save_neighbours(args.out / "neighbours.png", test.images, test.labels, before_after)
    histories = {name: result.history for name, (result, _) in runs.items()}
    save_curves(args.out / "curves.png", histories, {name: recalls for name, (_, recalls) in runs.items()})
    print(f"\nSaved {args.out / 'neighbours.png'} and {args.out / 'curves.png'}")


if __name__ == "__main__":
    main()
