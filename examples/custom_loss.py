"""Compare losses of pytorch-metric-learning: pairs, a cross-batch memory, proxies, and sums of losses.

python examples/custom_loss.py

All losses are combined with the rotation loss. In the 150 steps of this example, pair losses improve a network that
starts from random weights. The cross-batch memory and the proxies alone need longer trainings: after 150 steps their
scores are below those of the untrained network. Its images need `pip install "udmlss[demo]"`.
"""

import argparse

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity
from torch import nn
from torchvision.transforms import v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    evaluate,
    fit,
    keep_freed_memory,
)
from udmlss.data import glyphs
from udmlss.losses import SynthesisRankingLoss

CLUSTERS, DIMENSIONS = 500, 128
LOSSES = {
    "supervised contrastive": losses.SupConLoss,
    "cross-batch memory": lambda: losses.CrossBatchMemory(
        losses.ContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=CosineSimilarity()), DIMENSIONS, memory_size=1024
    ),
    "proxy anchor": lambda: losses.ProxyAnchorLoss(CLUSTERS, DIMENSIONS),
    "proxies and pairs": lambda: losses.MultipleLosses(
        [losses.ProxyAnchorLoss(CLUSTERS, DIMENSIONS), losses.MultiSimilarityLoss(2, 40, 0.5)]
    ),
    "pairs and ranking": lambda: losses.MultipleLosses(
        [losses.MultiSimilarityLoss(2, 40, 0.5), SynthesisRankingLoss(DIMENSIONS, anchor_weight=0)], weights=[1, 0.23]
    ),
}


def build_model() -> EmbeddingModel:
    """Return the same untrained network for every loss."""
    torch.manual_seed(0)
    trunk = nn.Sequential(
        *[nn.Conv2d(1, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
        *[nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(4), nn.Flatten()],
    )
    return EmbeddingModel(trunk, nn.Linear(2048, DIMENSIONS))


def main() -> None:
    """Train with each loss and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps with each loss (default: 150)")
    args = parser.parse_args()
    keep_freed_memory()
    augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
    train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
    print(f"{'untrained network':22}", evaluate(build_model(), test, test.labels))
    for name, build_loss in LOSSES.items():
        model = build_model()
        fit(
            model,
            train,
            cluster_images=plain,
            labeler=ClusterPseudoLabeler(CLUSTERS),
            criterion=build_loss(),
            rotation_head=RotationPretextHead(2048),
            clusters_per_batch=16,
            views=1,
            max_steps=args.steps,
            relabel_every=75,
            from_scratch=True,
            average_weights=False,
        )
        print(f"{name:22}", evaluate(model, test, test.labels))


if __name__ == "__main__":
    main()
