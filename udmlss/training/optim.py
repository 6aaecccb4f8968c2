"""Parameter groups, the default optimizer, and checks of optimizers."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from udmlss._checks import check_number, type_error, value_error
from udmlss._torch import device_of, trunk_of

_FUSED = ("cuda",)  # a CPU also has a fused AdamW, whose results differ by rounding from those of the default
PRETRAINED_LR, SCRATCH_LR, PROXY_LR = 3e-5, 1e-3, 1e-2


def parameter_groups(
    model: nn.Module,
    criterion: nn.Module,
    rotation_head: nn.Module | None = None,
    *,
    auxiliary: nn.Module | None = None,
    trunk_lr: float = PRETRAINED_LR,
    lr: float | None = None,
    proxy_lr: float = PROXY_LR,
) -> list[dict[str, Any]]:
    """Group all trainable parameters by learning rate, for any optimizer of torch.

    Args:
        model: The `EmbeddingModel`, compiled or not. Its trunk is usually pretrained, so it has a learning rate of its
            own.
        criterion: The loss. Its proxies or class weights, if it has any, are trained without weight decay.
        rotation_head: The rotation head, if any.
        auxiliary: The auxiliary loss, if any.
        trunk_lr: Learning rate of the trunk. The default suits a pretrained one.
        lr: Learning rate of the embedder, the rotation head and the auxiliary loss. None means `trunk_lr`, which suits
            an embedder from `embedder_from_features`; parts that are initialized at random need a higher one.
        proxy_lr: Learning rate of the parameters of the criterion.

    Returns:
        Dictionaries with "params", "lr" and "name". A parameter that several parts share is in the first group of them.
        A group without trainable parameters is omitted.

    Raises:
        ValueError: A learning rate is negative or not finite.
        TypeError: The model has no trunk.

    Example:
        >>> model, criterion = EmbeddingModel(nn.Linear(8, 4), nn.Linear(4, 2)), nn.Identity()
        >>> [group["name"] for group in parameter_groups(model, criterion)]
        ['trunk', 'new parts']
    """
    lr = trunk_lr if lr is None else lr
    for name, value in {"trunk_lr": trunk_lr, "lr": lr, "proxy_lr": proxy_lr}.items():
        check_number(name, value, 0)
    trunk = trunk_of(model)
    new = [part for part in (model.get_submodule("embedder"), rotation_head, auxiliary) if part is not None]
    groups: list[dict[str, Any]] = [
        {"name": "trunk", "params": _trainable(trunk), "lr": float(trunk_lr)},
        {"name": "new parts", "params": _trainable(*new), "lr": float(lr)},
        {"name": "loss", "params": _trainable(criterion), "lr": float(proxy_lr), "weight_decay": 0.0},
    ]
    shared: set[nn.Parameter] = set()
    for group in groups:
        group["params"] = [parameter for parameter in dict.fromkeys(group["params"]) if parameter not in shared]
        shared.update(group["params"])
    return [group for group in groups if group["params"]]


def build_optimizer(
    optimizer: Optimizer | None,
    modules: dict[str, nn.Module],
    *,
    trunk_lr: float | None,
    lr: float | None,
    from_scratch: bool,
) -> Optimizer:
    """Return the optimizer of the caller, or AdamW on the parameter groups of the modules.

    Raises:
        ValueError: Both an optimizer and a learning rate are given.
    """
    rates = {name: rate for name, rate in {"trunk_lr": trunk_lr, "lr": lr}.items() if rate is not None}
    if optimizer is None:
        rates = {"trunk_lr": SCRATCH_LR if from_scratch else PRETRAINED_LR} | rates
        fused = device_of(modules["model"]).type in _FUSED
        return AdamW(parameter_groups(**modules, **rates), fused=fused)  # type: ignore[arg-type] # modules by name
    if rates:
        rule = "Learning rates belong to the optimizer where one is given"
        remedy = "Pass one of the two: `parameter_groups` takes the same learning rates"
        raise value_error(rule, f"`optimizer` and {' and '.join(f'`{name}`' for name in rates)}", remedy)
    return optimizer


def left_out_parameters(optimizer: Optimizer, modules: dict[str, nn.Module]) -> list[str]:
    """Return the names of the trainable parameters of the modules that the optimizer does not hold."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [
        f"{part}.{name}"
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]


def _trainable(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def check_optimizer(optimizer: Optimizer, scheduler: LRScheduler | None, modules: dict[str, nn.Module]) -> None:
    """Raise an error if the optimizer or scheduler cannot be used, and warn of parameters that are hardly trained."""
    if isinstance(scheduler, ReduceLROnPlateau):
        remedy = "Call its `step` in a callback"
        raise type_error("`scheduler` must not need a score to step", "ReduceLROnPlateau", remedy)
    if scheduler is not None and scheduler.optimizer is not optimizer:
        remedy = "Pass the optimizer that the scheduler was built on"
        raise value_error("`scheduler` must be built on `optimizer`", "one of another optimizer", remedy)
    _, *parameters = inspect.signature(type(optimizer).step).parameters.values()  # the first one is `self`
    if any(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters):
        name = f"{type(optimizer).__name__}, whose `step` needs a closure"
        raise type_error("`optimizer` must step without arguments", name, "Use AdamW or SGD")
    names = left_out_parameters(optimizer, modules)
    if names:
        warnings.warn(
            f"`optimizer` does not hold {_list_names(names)}, which will not be trained. Build it on "
            "`parameter_groups(...)`, or call `.requires_grad_(False)` on parameters that must not change.",
            stacklevel=3,
        )
    _check_half_precision(optimizer, modules)


def _check_half_precision(optimizer: Optimizer, modules: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if the optimizer trains float16 weights, and warn of bfloat16 weights."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names: dict[torch.dtype, list[str]] = {torch.float16: [], torch.bfloat16: []}
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if id(parameter) in held and parameter.requires_grad and parameter.dtype in names:
                names[parameter.dtype].append(f"{part}.{name}")
    remedy = 'Call `.float()` on the module, and pass `precision="bfloat16"` for mixed precision'
    if names[torch.float16]:
        rule = "Trained weights must not be in float16, in which small gradients become zero"
        raise value_error(rule, f"float16 in {_list_names(names[torch.float16])}", remedy)
    # Optimizers of other libraries may round at random or hold a copy in float32
    if names[torch.bfloat16] and type(optimizer).__module__.startswith("torch.optim"):
        rule = "Trained weights should be in float32, because bfloat16 loses steps below about 1/256 of a weight"
        found = f"bfloat16 in {_list_names(names[torch.bfloat16])}"
        warnings.warn(str(value_error(rule, found, remedy)), stacklevel=4)


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004
