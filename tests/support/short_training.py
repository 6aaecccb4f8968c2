"""Small images, a small model and a short training, for the tests of `fit` and `Rounds`."""

from dataclasses import astuple

import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.utils.data import Dataset

from udmlss import ClusterPseudoLabeler, EmbeddingModel, UDMLSSLoss, fit

CLASSES, IMAGES_PER_CLASS, SIDE = 12, 20, 8


def make_images():
    """Return noisy images of each class with random brightness, and their classes."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)
    noise = torch.randn(len(labels), 3, SIDE, SIDE, generator=generator)
    brightness = torch.rand(len(labels), 1, 1, 1, generator=generator)
    return patterns[labels] + noise + brightness, labels


IMAGES, LABELS = make_images()


class Augmented(Dataset):
    """The images with new noise each time that they are loaded."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index] + 0.3 * torch.randn(IMAGES[index].shape)


def make_model():
    """Return a model with batch norm, with the same weights each time."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(4)
    trunk = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), pool, nn.Flatten())
    return EmbeddingModel(trunk, nn.Linear(256, 16))


def make_pretrained_model():
    """Return the model with running statistics that are not the initial ones."""
    model = make_model()
    model.trunk[1].running_mean += 0.5
    return model


def criterion(loss=None):
    """Return a criterion around a loss, by default the multi-similarity loss."""
    return UDMLSSLoss(loss or losses.MultiSimilarityLoss(2, 40, 0.5))


SETTINGS = {
    "clusters_per_batch": 8,
    "samples_per_cluster": 4,
    "views": 1,
    "max_steps": 6,
    "relabel_every": 3,
}


def short_fit(model, images=IMAGES, **changes):
    """Train for six steps in two rounds, with changed arguments."""
    parts = {"labeler": ClusterPseudoLabeler(16), "criterion": criterion()}
    others = {"freeze_batch_norm": False, "average_weights": False, "progress": False}
    return fit(model, images, **(SETTINGS | parts | others | changes))


def weights(*modules):
    """Return a copy of all parameters as one vector."""
    return torch.cat([parameter.detach().flatten().clone() for part in modules for parameter in part.parameters()])


def figures(result):
    """Return all figures of the history but the seconds."""
    return [astuple(report)[:-1] for report in result.history]
