"""The pooling of the examples' backbones: another one in its place, and the feature maps that go into it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = {"small": "4", "efficientnet_lite0": "_avg_pooling", "resnet50": "avgpool", "googlenet": "avgpool"}


class Maximum(nn.Module):
    """Pools feature maps (b c h w) to their maximum."""

    def forward(self, maps: Tensor) -> Tensor:
        return functional.adaptive_max_pool2d(maps, 1)


class AverageAndMaximum(nn.Module):
    """Pools feature maps (b c h w) to the sum of their mean and their maximum."""

    def forward(self, maps: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(maps, 1) + functional.adaptive_max_pool2d(maps, 1)


POOLINGS = {"maximum": Maximum, "average+maximum": AverageAndMaximum}  # what they do by themselves is "average"


def set_pooling(trunk: nn.Module, backbone: str, pooling: str) -> None:
    if pooling != "average":
        setattr(trunk, LAYERS[backbone], POOLINGS[pooling]())


def pooling_layer(trunk: nn.Module, backbone: str) -> nn.Module:
    return trunk.get_submodule(LAYERS[backbone])


def maps_before(pool: nn.Module, trunk: nn.Module, images: Tensor) -> Tensor:
    """Return the feature maps (b f y x) that the trunk's pooling layer takes in."""
    seen: list[Tensor] = []
    hook = pool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        trunk(images)
    finally:
        hook.remove()
    return torch.cat(seen)
