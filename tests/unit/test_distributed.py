"""The checks run in real processes, this file being their program; what they return is judged here, in one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from udmlss import EmbeddingModel, PseudoLabels, rotate_four_ways
from udmlss.distributed import (
    SameFate,
    broadcast,
    from_first,
    gather,
    gather_shards,
    is_first,
    joined,
    mean_over_ranks,
    rank,
    shard,
    world_size,
)

pytestmark = pytest.mark.xdist_group("distributed")  # so that the processes start once

BATCH = 8  # of a rank
SIZES = (1, 7, 10, 100)
PSEUDO = PseudoLabels(torch.arange(10**6) % 3, torch.eye(3), torch.tensor([4, 3, 3]), agreement=0.5)
LOSSES = {
    "pairs": lambda: losses.MultiSimilarityLoss(2, 40, 0.5),
    "proxies": lambda: losses.ProxyAnchorLoss(4, 5),
    "random triplets left out": lambda: losses.NTXentLoss(),
}


class Whole(nn.Module):
    """What a step sends through the network: images and turned images through one trunk, then gathered."""

    def __init__(self, loss):
        super().__init__()
        trunk = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh())
        self.model = EmbeddingModel(trunk, nn.Linear(6, 5))
        self.head = nn.Linear(6, 4)
        self.loss = loss

    def forward(self, images, labels):
        turned, turns = rotate_four_ways(images)
        logits = self.head(self.model.trunk(turned))
        loss = self.loss(gather(self.model(images)), gather(labels))
        return loss + 0.1 * nn.functional.cross_entropy(logits, turns)


def whole(name):
    torch.manual_seed(0)
    return Whole(LOSSES[name]()).double()


def joined_batch(n_ranks):
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(n_ranks * BATCH, 3, 2, 2, generator=draws, dtype=torch.float64)
    return images, torch.arange(n_ranks * BATCH) % 4


def gradients(module, rank=0, n_ranks=1, of=1):
    images, labels = (part.chunk(n_ranks)[rank] for part in joined_batch(of))
    loss = module(images, labels)
    loss.backward()
    found = {name.removeprefix("module."): parameter.grad for name, parameter in module.named_parameters()}
    return found


def proxies_outside(module, rank, n_ranks):
    """Return the gradients of a loss that is left out of DistributedDataParallel, and of the model inside."""
    model = DistributedDataParallel(module.model)
    images, labels = (part.chunk(n_ranks)[rank] for part in joined_batch(n_ranks))
    module.loss(gather(model(images)), gather(labels)).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def rows_of(n):
    return torch.stack([torch.arange(n), -torch.arange(n)], dim=1).float()


def caught(function):
    """Return the error's type and text, and the seconds until it came."""
    begun = time.monotonic()
    try:
        function()
    except BaseException as error:  # noqa: BLE001 (KeyboardInterrupt is one of them)
        return type(error).__name__, str(error), time.monotonic() - begun
    return None, "", time.monotonic() - begun


def failing(ranks, make):
    with SameFate():
        if rank() in ranks:
            raise make()


def asking(ranks):
    with SameFate() as fate:
        if rank() in ranks:
            fate.ask_stop()
    return fate.stop
