"""What a training holds: the modules that learn, and what teaches them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from udmlss.embedding import EmbeddingModel
from udmlss.losses import UDMLSSLoss
from udmlss.rotation import RotationPretextHead


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules that learn, and what teaches them; `average` is a moving average of the model's weights."""

    model: EmbeddingModel
    criterion: UDMLSSLoss
    rotation_head: RotationPretextHead | None
    auxiliary: nn.Module | None
    optimizer: Optimizer
    scheduler: LRScheduler | None
    average: AveragedModel | None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that learn, by name."""
        named = {
            "model": self.model,
            "criterion": self.criterion,
            "rotation_head": self.rotation_head,
            "auxiliary": self.auxiliary,
        }
        return {name: module for name, module in named.items() if module is not None}

    @property
    def judged(self) -> EmbeddingModel:
        """The model that is clustered, judged and kept: the average where there is one."""
        return self.model if self.average is None else cast("EmbeddingModel", self.average.module)

    @property
    def kept(self) -> Sequence[nn.Module]:
        """The modules whose weights `keep="best"` brings back."""
        return list((self.modules | {"model": self.judged}).values())


def averaged(model: EmbeddingModel, decay: float | None) -> AveragedModel | None:
    """Return a copy of the model that will follow its weights, keeping that share of itself at each step."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from the seed for the `with` block, and leave its global state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
