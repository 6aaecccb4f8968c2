"""State of modules that their `state_dict` does not hold."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from udmlss._torch import plain_name

_ATTRIBUTES_OF_TORCH = frozenset(vars(nn.Module()))  # such as `training` and `_parameters`


class ModuleAttributes:
    """Numbers, tensors and random generators that modules hold as plain attributes.

    Losses that sample hold a generator this way, and `CrossBatchMemory` holds its position in the memory. Only what
    changed since construction is saved, so that settings remain those of the program that resumes.

    Args:
        modules: Modules by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = {
            f"{name}.{plain_name(path)}": part
            for name, module in modules.items()
            for path, part in module.named_modules()
            if not hasattr(part, "_orig_mod")  # the wrapper of a compiled module
        }
        self._initial = {name: _copies(_attributes(part)) for name, part in self._modules.items()}

    def changed(self) -> dict[str, dict[str, Any]]:
        """Return the attributes that changed since construction, by the name of their module."""
        changed = {}
        for name, part in self._modules.items():
            before = self._initial[name]
            values = {key: value for key, value in _attributes(part).items() if not _equal(value, before.get(key))}
            if values:
                changed[name] = values
        return changed

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Set the attributes to those of the state."""
        for name, values in state.items():
            for key, value in values.items():
                _set_attribute(self._modules[name], key, value)


def _attributes(part: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in vars(part).items() if key not in _ATTRIBUTES_OF_TORCH}
    generators = {key: value.get_state() for key, value in own.items() if isinstance(value, torch.Generator)}
    return {key: value for key, value in own.items() if isinstance(value, Real | Tensor)} | generators


def _copies(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy the tensors, which a module may change in place."""
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in attributes.items()}


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and torch.equal(one, other)
    return type(one) is type(other) and one == other


def _set_attribute(part: nn.Module, key: str, value: Any) -> None:  # noqa: ANN401 (a number, a tensor or a state)
    present = vars(part).get(key)
    if isinstance(present, torch.Generator):
        present.set_state(value)
    else:
        setattr(part, key, value.to(present.device) if isinstance(present, Tensor) else value)
