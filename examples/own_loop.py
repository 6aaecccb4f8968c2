"""The same training without `fit`: the parts in a plain PyTorch loop.

python examples/own_loop.py
"""

import argparse

import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    IndexedImages,
    PseudoLabelSampler,
    RotationPretextHead,
    UDMLSSLoss,
    embed,
    evaluate,
    parameter_groups,
    rotate_four_ways,
)
from udmlss.data import glyphs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=4)
parser.add_argument("--steps", type=int, default=75, help="optimiser steps a round")
args = parser.parse_args()

torch.manual_seed(0)
augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
trunk = nn.Sequential(
    *[nn.Conv2d(1, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
    *[nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()],
    *[nn.AdaptiveAvgPool2d(4), nn.Flatten()],
)
model = EmbeddingModel(trunk, nn.Linear(2048, 128))
head = RotationPretextHead(2048)
labeler = ClusterPseudoLabeler(500)
criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
optimizer = torch.optim.AdamW(parameter_groups(model, criterion, head, trunk_lr=1e-3, lr=1e-3))

print("before:", evaluate(model, test, test.labels))
for number in range(args.rounds):
    pseudo = labeler.label(embed(model, plain))
    criterion.start_round(pseudo)
    sampler = PseudoLabelSampler(pseudo.labels, n_batches=args.steps, seed=number)
    for images, index in DataLoader(IndexedImages(train), batch_sampler=sampler):
        turned, turns = rotate_four_ways(images[torch.randperm(len(images))[:16]])
        loss = criterion(model(images), pseudo.labels[index], head(model.trunk(turned)), turns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"round {number}: loss {loss.item():.3f} ", evaluate(model, test, test.labels))
