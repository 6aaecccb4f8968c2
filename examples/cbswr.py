"""Train by CBSwR, in which a head clusters the images of each batch, without k-means.

python examples/cbswr.py
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from udmlss import EmbeddingModel, IndexedImages, embed, evaluate, keep_freed_memory, pair_with_neighbors
from udmlss.data import glyphs
from udmlss.losses import CBSwRLoss, ClusteringHead, Decoder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=2, help="number of searches for nearest neighbors (default: 2)")
parser.add_argument("--steps", type=int, default=100, help="optimizer steps per round, at most 188 (default: 100)")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
keep_freed_memory()
augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
maps = nn.Sequential(
    *[nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()],
    *[nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
)
pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
model = EmbeddingModel(nn.Sequential(maps, pool), nn.Linear(1024, 128))
criterion = CBSwRLoss(ClusteringHead(128, 32), Decoder((64, 8, 8), (1, 32, 32)))
optimizer = torch.optim.AdamW([*model.parameters(), *criterion.parameters()], lr=1e-3)


def embed_maps(feature_maps: torch.Tensor) -> torch.Tensor:
    return model.embed_features(pool(feature_maps))


def print_scores(when: str) -> None:
    images, labels = Subset(test, range(len(test))[:3000]), test.labels[:3000]
    print(f"{when:6} features  ", evaluate(model, images, labels, output="features"))
    print(f"{when:6} embeddings", evaluate(model, images, labels))


print_scores("before")
for number in range(args.rounds):
    partners = pair_with_neighbors(embed(model, plain), seed=number)
    batches = torch.randperm(len(train)).split(64)[:-1]  # the last batch may be smaller than the number of clusters
    # each batch has all first views, then all second views: of the image itself or of its nearest neighbor
    pairs = [torch.cat([indices, partners[indices]]).tolist() for indices in batches[: args.steps]]
    for images, _ in DataLoader(IndexedImages(train), batch_sampler=pairs):
        views, second_views = images.chunk(2)
        with torch.no_grad():
            second_embeddings = model(second_views)
        terms = criterion.terms(maps(views), second_embeddings, views, embed_maps)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    print(f"round {number}: " + "  ".join(f"{name} {value.item():.3f}" for name, value in vars(terms).items()))
print_scores("after")
