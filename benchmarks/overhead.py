"""What `fit` costs over a bare loop that makes the same passes: forward, backward, embedding, second views and k-means.

    python benchmarks/overhead.py

The two run in turn, the order changing, with as many threads; printed are the ratios pair by pair and their median.
The bare loop uses torch, pytorch-metric-learning and faiss alone and does none of `fit`'s checking, matching of
cluster ids, judging, measuring and reporting.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import faiss
import numpy as np
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

from udmlss import ClusterPseudoLabeler, EmbeddingModel, RotationPretextHead, UDMLSSLoss, fit, parameter_groups
from udmlss.data import glyphs

CLUSTERS, P, K, TURNED, PROBE = 300, 16, 5, 16, 1000


def build() -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    trunk = nn.Sequential(block(1, 64), block(64, 64), block(64, 128), block(128, 128), nn.Flatten())
    return trunk, nn.Linear(512, 128), nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))


def with_fit(images: Tensor, steps: int, every: int) -> None:
    trunk, embedder, _ = build()
    model, head = EmbeddingModel(trunk, embedder), RotationPretextHead(512)
    criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    fit(
        model,
        images,
        labeler=ClusterPseudoLabeler(CLUSTERS),
        criterion=criterion,
        rotation_head=head,
        optimizer=torch.optim.AdamW(parameter_groups(model, criterion, head)),
        max_steps=steps,
        relabel_every=every,
        freeze_batch_norm=False,
        progress=False,
    )


def bare(images: Tensor, steps: int, every: int) -> None:
    trunk, embedder, head = build()
    parameters = [*trunk.parameters(), *embedder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    loss_function, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
    data = TensorDataset(images, torch.arange(len(images)))

    def look() -> tuple[Tensor, Tensor]:
        trunk.eval()
        with torch.inference_mode():
            features = torch.cat([trunk(batch) for batch, _ in DataLoader(data, batch_size=128)])
            for batch, _ in DataLoader(Subset(data, range(min(PROBE, len(data)))), batch_size=128):
                embedder(trunk(batch))
            embeddings = functional.normalize(embedder(features))
        trunk.train()
        return features, embeddings

    draws = np.random.default_rng(0)
    centroids = None
    found, _ = look()
    for begin in range(0, steps, every):
        rows = found.numpy()
        kmeans = faiss.Kmeans(
            rows.shape[1], CLUSTERS, niter=25, min_points_per_centroid=1, max_points_per_centroid=len(rows)
        )
        fits = centroids is not None and centroids.shape[1] == rows.shape[1]
        kmeans.train(rows, init_centroids=centroids if fits else None)
        labels, centroids = torch.from_numpy(kmeans.assign(rows)[1]), kmeans.centroids
        members = [torch.nonzero(labels == cluster).flatten().numpy() for cluster in range(CLUSTERS)]
        full = [cluster for cluster in range(CLUSTERS) if len(members[cluster]) > 1]
        batches = [
            [int(i) for c in draws.choice(full, P, replace=False) for i in draws.choice(members[c], K)]
            for _ in range(min(every, steps - begin))
        ]
        for batch, index in DataLoader(data, batch_sampler=batches):
            embeddings = functional.normalize(embedder(trunk(batch)))
            chosen = batch[torch.randperm(len(batch))[:TURNED]]
            turned = torch.cat([torch.rot90(chosen, turn, (2, 3)) for turn in range(4)])
            turns = torch.arange(4).repeat_interleave(TURNED)
            metric = loss_function(embeddings, labels[index], miner(embeddings, labels[index]))
            loss = metric + 0.1 * functional.cross_entropy(head(trunk(turned)), turns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _, found = look()


def seconds(run: Callable[..., None], *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    images = glyphs("train").images[: args.images]
    arguments = (images, args.steps, args.every)
    seconds(bare, *arguments)
    seconds(with_fit, *arguments)
    ratios = []
    for pair in range(args.pairs):
        order = (with_fit, bare) if pair % 2 else (bare, with_fit)
        took = {run: seconds(run, *arguments) for run in order}
        ratios.append(took[with_fit] / took[bare])
        print(f"fit {took[with_fit]:6.2f} s   bare loop {took[bare]:6.2f} s   ratio {ratios[-1]:.3f}")
    print(f"median ratio {median(ratios):.3f}  (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
