"""What a training holds: the modules that learn, and what teaches them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from udmlss.losses import UDMLSSLoss
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.rotation import RotationPretextHead


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


@dataclass(frozen=True)
class Schedule:
    """How many optimiser steps, and how many of them between two clusterings."""

    steps: int
    every: int

    def lengths(self, first: int = 0) -> Iterator[tuple[int, int]]:
        """Yield the number and the steps of each round from the first asked for."""
        for number, begin in enumerate(range(0, self.steps, self.every)):
            if number >= first:
                yield number, min(self.every, self.steps - begin)
