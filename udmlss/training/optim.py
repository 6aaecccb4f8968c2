"""What trains, and how fast: the parameters of model, head and loss as groups for an optimiser."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from udmlss._checks import value_error
from udmlss.models.embedding_model import EmbeddingModel


def parameter_groups(
    model: EmbeddingModel,
    criterion: nn.Module,
    rotation_head: nn.Module | None = None,
    *,
    auxiliary: nn.Module | None = None,
    trunk_lr: float = 1e-4,
    lr: float = 1e-3,
    proxy_lr: float = 1e-2,
) -> list[dict[str, Any]]:
    """Group everything that trains, for any torch optimiser.

    Args:
        model: Its trunk, usually pretrained, learns slowly; its embedder is new.
        criterion: The loss; its proxies or class weights, if any, learn fast and without weight decay.
        rotation_head: The head, if any; it is new.
        auxiliary: A further loss with a head of its own, if any, as `fit` takes it; it is new.
        trunk_lr: Learning rate of the trunk.
        lr: Learning rate of embedder, head and auxiliary.
        proxy_lr: Learning rate of the loss's own parameters.

    Returns:
        Groups with "params", "lr" and "name", those without a trainable parameter left out.

    Example:
        >>> model, criterion = EmbeddingModel(nn.Linear(8, 4), nn.Linear(4, 2)), nn.Identity()
        >>> [group["name"] for group in parameter_groups(model, criterion)]
        ['trunk', 'new parts']
    """
    new = [part for part in (model.embedder, rotation_head, auxiliary) if part is not None]
    groups = [
        {"name": "trunk", "params": _trainable(model.trunk), "lr": trunk_lr},
        {"name": "new parts", "params": _trainable(*new), "lr": lr},
        {"name": "loss", "params": _trainable(criterion), "lr": proxy_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _trainable(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def check_complete(optimizer: Optimizer, **parts: nn.Module | None) -> None:
    """Refuse an optimiser that would leave a trainable parameter of the parts as it is."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [
        f"{part}.{name}"
        for part, module in parts.items()
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]
    if missing:
        raise value_error(
            "`optimizer` must hold every parameter that trains",
            f"{len(missing)} left out, the first is {missing[0]}",
            "Build it on `parameter_groups(model, criterion, rotation_head, auxiliary=auxiliary)` with the parts that "
            "you have, or call .requires_grad_(False) on them",
        )


def averaged(model: EmbeddingModel, decay: float | None) -> AveragedModel | None:
    """Return a copy of the model that will follow its weights, keeping that share of itself at each step."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
