"""Global pooling of the backbones of the examples: replace it, or read the feature maps that it pools.

A module of reproduce.py, not a program.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# "4" is the `nn.Flatten` of the small network
LAYERS = {"small": "4", "efficientnet-lite0": "_avg_pooling", "resnet50": "avgpool", "googlenet": "avgpool"}


class MaxPooling(nn.Module):
    """Global max pooling of feature maps (b, c, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        return functional.adaptive_max_pool2d(maps, 1)


class AverageMaxPooling(nn.Module):
    """Sum of global average and max pooling of feature maps (b, c, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(maps, 1) + functional.adaptive_max_pool2d(maps, 1)


POOLINGS = {"maximum": MaxPooling, "average+maximum": AverageMaxPooling}  # the backbones themselves have "average"


def set_pooling(trunk: nn.Module, backbone: str, pooling: str) -> None:
    """Replace the pooling layer of a trunk, unless the pooling is "average"."""
    if pooling != "average":
        setattr(trunk, LAYERS[backbone], POOLINGS[pooling]())


def pooling_layer(trunk: nn.Module, backbone: str) -> nn.Module:
    return trunk.get_submodule(LAYERS[backbone])


def compute_maps(pool: nn.Module, trunk: nn.Module, images: Tensor) -> Tensor:
    """Return the feature maps (b, f, y, x) that the pooling layer of a trunk receives."""
    inputs: list[Tensor] = []
    hook = pool.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        trunk(images)
    finally:
        hook.remove()
    return torch.cat(inputs)
