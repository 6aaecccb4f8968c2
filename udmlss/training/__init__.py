"""Training: `fit`, the rounds that it iterates over, and its callbacks."""

from udmlss.training.callbacks import (
    BestWeights,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    MLflowLogger,
    TensorBoardLogger,
    WandbLogger,
    WeightAverage,
)
from udmlss.training.fit import fit
from udmlss.training.memory_allocator import keep_freed_memory
from udmlss.training.optim import parameter_groups
from udmlss.training.rounds import Rounds

__all__ = [
    "BestWeights",
    "CSVLogger",
    "Checkpoint",
    "EarlyStopping",
    "MLflowLogger",
    "Rounds",
    "TensorBoardLogger",
    "WandbLogger",
    "WeightAverage",
    "fit",
    "keep_freed_memory",
    "parameter_groups",
]
