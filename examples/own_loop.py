"""Train in a loop over `Rounds`.

On a CPU the result equals that of `fit(model, train, cluster_images=plain, max_steps=300, relabel_every=75,
from_scratch=True, average_weights=False)`, bit for bit.
"""

import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torchvision.transforms import v2

from udmlss import EmbeddingModel, Rounds, UDMLSSLoss, evaluate, keep_freed_memory, parameter_groups
from udmlss.data import glyphs

torch.manual_seed(0)
keep_freed_memory()  # makes training on a CPU under Linux faster
augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
trunk = nn.Sequential(
    *[nn.Conv2d(1, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
    *[nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()],
    *[nn.AdaptiveAvgPool2d(4), nn.Flatten()],
)
model = EmbeddingModel(trunk, nn.Linear(2048, 128))
criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
optimizer = torch.optim.AdamW(parameter_groups(model, criterion, trunk_lr=1e-3))
rounds = Rounds(model, train, cluster_images=plain, max_steps=300, relabel_every=75)

print("before:", evaluate(model, test, test.labels))
model.train()
for round in rounds:
    criterion.start_round(round.pseudo_labels)
    for images, labels in round:
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"round {round.number}: loss {loss.item():.3f}, {round.pseudo_labels}")
print("after:", evaluate(model, test, test.labels))
