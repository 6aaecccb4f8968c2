"""A short training with randomness in every part, and its outcome, for the tests of interrupted and resumed runs."""

import os
import signal
from dataclasses import replace
from inspect import isfunction

import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.utils.data import Dataset

from udmlss import ClusterPseudoLabeler, EmbeddingModel, RotationPretextHead, UDMLSSLoss, fit
from udmlss.clustering import k_means
from udmlss.models import PCAEmbedder

N, STEPS, STEPS_PER_ROUND = 48, 11, 4


class Noisy(Dataset):
    """Images with new noise each time that they are loaded."""

    def __init__(self, n=N, shift=0.0):
        self.images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)) + shift

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.2 * torch.randn(1, 8, 8)


class Terminating(Noisy):
    """The images, where loading the n-th one sends SIGTERM to this process."""

    def __init__(self, n_loads):
        super().__init__()
        self.n_loads = n_loads

    def __getitem__(self, index):
        self.n_loads -= 1
        if self.n_loads == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


class ChangingClusters:
    """A labeler of k-means with another number of clusters in each round, which checkpoints save."""

    def __init__(self, *numbers):
        self.numbers, self.round = numbers, 0
        self.labeler = ClusterPseudoLabeler(lambda embeddings: k_means(embeddings, self.numbers[self.round - 1]))

    def label(self, embeddings):
        self.round += 1
        return self.labeler.label(embeddings)

    def state_dict(self):
        return {"round": self.round, "labeler": self.labeler.state_dict()}

    def load_state_dict(self, state):
        self.round = state["round"]
        self.labeler.load_state_dict(state["labeler"])


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def build(d=8, max_images=4, **changes):
    """Return a model and arguments of `fit`, equal in each call; changes that are functions receive the model."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
    model = EmbeddingModel(trunk, PCAEmbedder(144, d))
    arguments = {
        "labeler": ClusterPseudoLabeler(6),
        "criterion": UDMLSSLoss(losses.ContrastiveLoss(), rotation_weight=0.1),
        "rotation_head": RotationPretextHead(144, 16, max_images),
        "clusters_per_batch": 3,
        "views": 1,
        "average_weights": False,
        "samples_per_cluster": 3,
        "max_steps": STEPS,
        "relabel_every": STEPS_PER_ROUND,
        "cluster_images": Noisy().images,
        "freeze_batch_norm": False,
        "progress": False,
    }
    for name, change in changes.items():
        arguments[name] = change(model) if isfunction(change) else change
    if "scheduler" in arguments:
        arguments["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(arguments["optimizer"], STEPS)
    return model, arguments


def train(*callbacks, images=None, **changes):
    """Train, and return the outcome: weights, history, clusters and the result's figures."""
    model, arguments = build(**changes)
    callbacks = [*arguments.pop("callbacks", ()), *callbacks]
    result = fit(model, Noisy() if images is None else images, **arguments, callbacks=callbacks)
    modules = [model, arguments["criterion"], arguments["rotation_head"], arguments.get("auxiliary")]
    return {
        "weights": [value for module in modules if module is not None for value in module.state_dict().values()],
        "history": [replace(report, seconds=0.0) for report in result.history],
        "labels": result.pseudo_labels.labels,
        "opinions": [result.pseudo_labels.reliability, result.pseudo_labels.coarse_labels],
        "figures": (result.stop_reason, result.weights_step, result.start),
    }


def assert_same(one, other):
    """Assert that two outcomes are equal bit for bit."""
    torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0)
    assert one["history"] == other["history"]
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["opinions"], other["opinions"], rtol=0, atol=0, equal_nan=True)
    assert one["figures"] == other["figures"]
