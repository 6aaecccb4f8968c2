"""Settings to the optimiser that every method trains with."""

from settings import Settings
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from udmlss import EmbeddingModel, RotationPretextHead, parameter_groups

OPTIMIZERS = {"adam": Adam, "adamw": AdamW}


def build_optimizer(
    settings: Settings,
    model: EmbeddingModel,
    criterion: nn.Module,
    rotation_head: RotationPretextHead | None = None,
    auxiliary: nn.Module | None = None,
) -> Optimizer:
    groups = parameter_groups(
        model, criterion, rotation_head, auxiliary=auxiliary, trunk_lr=settings.trunk_lr, lr=settings.lr
    )
    return OPTIMIZERS[settings.optimizer](groups, weight_decay=settings.weight_decay)
