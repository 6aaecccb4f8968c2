"""Devices, memory formats, data types, modes and precision of modules."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from udmlss._checks import type_error, value_error
from udmlss.types import Precision

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of images that a model can compute with


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter, or the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def is_channels_last(model: nn.Module) -> bool:
    """Return whether the weights of the model's convolutions are in the channels-last memory format."""
    return any(
        parameter.ndim == 4  # noqa: PLR2004
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()  # 1x1 and depthwise kernels are contiguous in both formats
        for parameter in model.parameters()
    )


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Return the data type of the module's first floating-point parameter, or None if it has none."""
    return next((parameter.dtype for parameter in module.parameters() if parameter.dtype in _DTYPES), None)


def to_device(images: Float[Tensor, "b c h w"], model: nn.Module) -> Float[Tensor, "b c h w"]:
    """Convert images to the model's device and data type, and to the memory format of its convolutions."""
    memory_format = torch.channels_last if is_channels_last(model) else torch.preserve_format
    dtype = dtype_of(model) or images.dtype
    return images.to(device_of(model), dtype, non_blocking=True, memory_format=memory_format)


def to_dtype(rows: Float[Tensor, "b f"], module: nn.Module) -> Float[Tensor, "b f"]:
    """Convert rows to the data type of the module's parameters, unless autocast does."""
    dtype = dtype_of(module) or rows.dtype
    if torch.is_autocast_enabled(rows.device.type) and dtype != torch.float64:
        return rows
    return rows.to(dtype)


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert a tensor in half precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_weights(model: nn.Module) -> None:
    """Raise ValueError if the model has parameters without values."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            remedy = "Call the model on one batch of images first"
            raise value_error("`model` must have initialized parameters", f"the lazy parameter {name}", remedy)
        if parameter.is_meta:
            remedy = 'Call `model.to_empty(device="cpu")` and load weights'
            raise value_error("`model` must have parameters with values", f"{name} on the meta device", remedy)


def autocast(model: nn.Module, precision: Precision) -> torch.autocast:
    """Return the context manager in which the forward passes of a model run.

    A model whose parameters are not in float32 runs in their data type.
    """
    enabled = precision != "float32" and dtype_of(model) in {torch.float32, None}
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device_of(model).type, dtype=dtype, enabled=enabled)


def plain_name(name: str) -> str:
    """Return the name that a part or a weight of a compiled module has without compilation."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def plain_state_dict(module: nn.Module) -> dict[str, Any]:
    """Return the state of a module under the names that it has without compilation."""
    return {plain_name(name): value for name, value in module.state_dict().items()}


def load_plain_state_dict(module: nn.Module, state: Mapping[str, Any], *, assign: bool = False) -> None:
    """Load the state that `plain_state_dict` returned into a module that may be compiled."""
    own: Any = module.state_dict()
    names = {plain_name(name): name for name in own}
    loaded: Any = OrderedDict((names.get(name, name), value) for name, value in state.items())
    loaded._metadata = own._metadata  # noqa: SLF001 (of torch; without a version, MNASNet takes a state for an old one)
    module.load_state_dict(loaded, assign=assign)


@contextmanager
def restore_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of every submodule after the `with` block."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode for the `with` block."""
    with restore_modes(module):
        module.eval()
        yield


def trunk_of(model: nn.Module) -> nn.Module:
    """Return the trunk of an `EmbeddingModel`, compiled or not.

    Raises:
        TypeError: The model has no trunk.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise type_error(
            "`model` must have a `trunk` that computes features",
            type(model).__name__,
            "Wrap it: EmbeddingModel(trunk, embedder)",
        )
    return trunk
