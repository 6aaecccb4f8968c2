"""Trainings in which the last rank differs from the others."""

from unittest.mock import patch

import torch
from interrupted_training import N, adam, build
from pytorch_metric_learning import losses
from torch import distributed, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from udmlss import (
    BestWeights,
    Checkpoint,
    ClusterPseudoLabeler,
    EarlyStopping,
    EmbeddingModel,
    Rounds,
    UDMLSSLoss,
    WeightAverage,
    fit,
)
from udmlss.distributed import rank, world_size

IMAGES = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(3))
SWAPPED = [0, 2, 1, *range(3, N)]  # two images that are not among those whose content is compared


class Files(Dataset):
    """Images of which a list names the files."""

    def __init__(self, order, folder="/data"):
        self.records = [(f"{folder}/{index}.png", 0) for index in order]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        path, label = self.records[index]
        return IMAGES[int(path.rpartition("/")[2].removesuffix(".png"))], label


class Unlisted(Dataset):
    """Images that are loaded from a place that nothing names."""

    def __init__(self, start=0):
        self.start = start

    def __len__(self):
        return N

    def __getitem__(self, index):
        return IMAGES[(index + self.start) % N]


class Logger:
    def on_round(self, report):
        pass


def freeze(model):
    model.embedder.bias.requires_grad_(requires_grad=False)


def drop_less(model):
    model.trunk[4].p = 0.1


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2)


def is_different():
    return rank() == world_size() - 1


def either(one, other):
    """Return one value on the last rank, and the other on all others."""
    return one if is_different() else other


# What the error names, and a function that returns the images of the last rank and those of the others
DATASETS = {
    "checksum of images": lambda: (IMAGES[SWAPPED], IMAGES),
    "checksum of images.tensors[0]": lambda: (TensorDataset(IMAGES[SWAPPED]), TensorDataset(IMAGES)),
    "checksum of images.records[:][0]": lambda: (Files(SWAPPED), Files(range(N))),
    "checksum of images.indices": lambda: (Subset(Files(range(N)), SWAPPED), Subset(Files(range(N)), range(N))),
    "content of the images": lambda: (Unlisted(1), Unlisted()),
    f"number of images {N} on rank 0 and {N - 1} on": lambda: (IMAGES[:-1], IMAGES),
}


# What the error names, and a function that returns the arguments of `fit` of this rank
SETTINGS = {
    "seed 1 on rank 0 and 2 on": lambda: {"seed": either(2, 1)},
    "clusters_per_batch 3 on rank 0 and 2 on": lambda: {"clusters_per_batch": either(2, 3)},
    "samples_per_cluster 3 on rank 0 and 2 on": lambda: {"samples_per_cluster": either(2, 3)},
    "views 1 on rank 0 and 3 on": lambda: {"views": either(3, 1)},
    "max_steps 1 on rank 0 and 2 on": lambda: {"max_steps": either(2, 1)},
    "relabel_every 4 on rank 0 and 3 on": lambda: {"relabel_every": either(3, 4)},
    "cluster_on embeddings on rank 0 and features on": lambda: {"cluster_on": either("features", "embeddings")},
    "precision float32 on rank 0 and bfloat16 on": lambda: {"precision": either("bfloat16", "float32")},
    "start_features none on rank 0 and given on": lambda: {"start_features": either(torch.rand(N, 144), None)},
    "label_free False on rank 0 and True on": lambda: {"label_free": is_different()},
    "accumulate_grad_batches 1 on rank 0 and 2 on": lambda: {"accumulate_grad_batches": either(2, 1)},
    "chunk_size none on rank 0 and 4 on": lambda: {"chunk_size": either(4, None)},
    "refit_embedder True on rank 0 and False on": lambda: {"refit_embedder": not is_different()},
    "clip_norm none on rank 0 and 1.0 on": lambda: {"clip_norm": either(1.0, None)},
    "freeze_batch_norm False on rank 0 and True on": lambda: {
        "freeze_batch_norm": is_different(),
        "change": lambda model: model.trunk[1].running_mean.add_(1),
    },
    "criterion.metric_loss ContrastiveLoss on rank 0 and TripletMarginLoss on": lambda: {
        "criterion": either(losses.TripletMarginLoss(), losses.ContrastiveLoss())
    },
    "criterion.rotation_weight 0.1 on rank 0 and 0.2 on": lambda: {
        "criterion": UDMLSSLoss(losses.ContrastiveLoss(), rotation_weight=either(0.2, 0.1))
    },
    "rotation_head RotationPretextHead on rank 0 and none on": lambda: either({"rotation_head": None}, {}),
    "labeler.n_clusters 6 on rank 0 and 5 on": lambda: {"labeler": ClusterPseudoLabeler(either(5, 6))},
    "labeler.seed none on rank 0 and 1 on": lambda: {"labeler": ClusterPseudoLabeler(6, seed=either(1, None))},
    "optimizer.trunk.lr 0.0001 on rank 0 and 0.01 on": lambda: {"trunk_lr": either(1e-2, 1e-4)},
    "optimizer AdamW on rank 0 and SGD on": lambda: {"optimizer": either(sgd, adam), "rotation_head": None},
    "scheduler none on rank 0 and CosineAnnealingLR on": lambda: (
        {"optimizer": adam, "rotation_head": None} | either({"scheduler": None}, {})
    ),
    "model.embedder.weight (8, 144) on rank 0 and (9, 144) on": lambda: {"d": either(9, 8)},
    "model.trunk.4.p 0.3 on rank 0 and 0.1 on": lambda: {"change": either(drop_less, None)},
    "model.embedder.bias float32, trained on rank 0 and float32, frozen on": lambda: {"change": either(freeze, None)},
    "callbacks Logger on rank 0 and Logger, BestWeights on": lambda: {
        "callbacks": either([Logger(), BestWeights()], [Logger()]),
        "label_free": True,
    },
    "EarlyStopping.patience 3 on rank 0 and 4 on": lambda: {"callbacks": EarlyStopping("agreement", either(4, 3))},
    "WeightAverage.decay 0.5 on rank 0 and 0.9 on": lambda: {"callbacks": WeightAverage(either(0.9, 0.5))},
}


class Projected(nn.Module):
    """A loss of randomly projected embeddings."""

    def __init__(self, *, persistent):
        super().__init__()
        torch.manual_seed(rank())
        self.loss = losses.ContrastiveLoss()
        projection = torch.randn(8, 8)
        if persistent:
            self.register_buffer("projection", projection)
        else:
            self.projection = projection

    def forward(self, embeddings, labels):
        return self.loss(embeddings @ self.projection, labels)


def train(images=IMAGES, change=None, **changes):
    model, arguments = build(**({"seed": 1, "max_steps": 1, "cluster_images": None} | changes))
    if change is not None:
        change(model)
    fit(model, images, **arguments)
    return model


def loop(change=lambda _: None, **changes):
    """Start a loop over rounds, in which the last rank may differ."""
    torch.manual_seed(0)
    model = EmbeddingModel(nn.Flatten(), nn.Linear(64, 8))
    settings = {"clusters_per_batch": 2, "samples_per_cluster": 2, "max_steps": 4, "relabel_every": 2}
    rounds = Rounds(model, IMAGES, ClusterPseudoLabeler(6), **(settings | changes))
    if is_different():
        change(rounds)
    return next(iter(rounds))


def shift_weights(rounds):
    with torch.no_grad():
        rounds.model.embedder.weight += 1


def resume(rounds):
    rounds.load_state_dict(rounds.state_dict() | {"number": 1, "steps_before": 2})


def error_of(function, **arguments):
    """Return the type and the text of a function's error."""
    try:
        function(**arguments)
    except Exception as error:  # noqa: BLE001 (the tests look at it)
        return type(error), str(error)
    return None


def shift_trunk(model):
    with torch.no_grad():
        model.trunk[0].weight += rank()


def number_of_exchanges(function):
    """Return the number of collective operations on descriptions of ranks."""
    with patch.object(distributed, "all_gather_object", wraps=distributed.all_gather_object) as exchange:
        function()
    return exchange.call_count


def all_errors(folder):
    """Return the errors of all trainings by name."""
    found = {name: error_of(train, **arguments()) for name, arguments in SETTINGS.items()}
    found |= {name: error_of(train, images=either(*images())) for name, images in DATASETS.items()}
    training_images = either(IMAGES[SWAPPED], IMAGES)
    checkpoint = Checkpoint(folder / "run", resume=is_different())
    return found | {
        "training images": error_of(train, images=training_images, cluster_images=IMAGES),
        "resume": error_of(train, callbacks=checkpoint),
        "buffer of the loss": error_of(train, criterion=Projected(persistent=True)),
        "tensor of the loss": error_of(train, criterion=Projected(persistent=False)),
        "invalid seed": error_of(train, seed=either(-1, 1)),
        "seed of a loop": error_of(loop, seed=either(2, 1)),
        "weights of a loop": error_of(loop, change=shift_weights),
        "round of a loop": error_of(loop, change=resume),
        "exchanges": [number_of_exchanges(train), number_of_exchanges(loop)],
    }


def trained_weights(folder):
    """Train with arguments that may differ between ranks, and return the weights."""
    model = train(
        Files(range(N), either("/other/folder", "/data")),
        change=shift_trunk,
        num_workers=either(1, 0),
        progress=False,
        embeddings_folder=either(folder, None),
        callbacks=either([], [lambda _: None]),
    )
    loop(num_workers=either(1, 0))
    return [parameter.detach().clone() for parameter in model.parameters()]
