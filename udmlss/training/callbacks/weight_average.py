"""Exponential moving average of the model's weights."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from udmlss._checks import check_number, type_error, value_error
from udmlss._torch import load_plain_state_dict, plain_state_dict
from udmlss.results import StepReport

if TYPE_CHECKING:
    from udmlss.training.run import Run


class WeightAverage:
    r"""Cluster the embeddings of an exponential moving average of the weights, and end training with the average.

    After each step $\bar w \leftarrow d \, \bar w + (1 - d) \, w$, starting with the weights before training.
    Floating-point parameters and buffers are averaged; others, such as counters and index tables, are copied.

    Args:
        decay: Decay d, strictly between 0 and 1: 0.95 averages over about 20 steps. Longer trainings allow higher
            values, such as 0.999 for tens of thousands of steps.

    Attributes:
        model: The averaged model, from the start of training on.

    Raises:
        ValueError: `decay` is not between 0 and 1.

    Example:
        `fit(model, images, ..., callbacks=[WeightAverage(0.95)])`

    References:
        Mean teachers are better role models. Tarvainen, Valpola. 2017. https://arxiv.org/abs/1703.01780
    """

    def __init__(self, decay: float = 0.95) -> None:
        check_number("decay", decay)
        if not 0 < decay < 1:
            raise value_error("`decay` must lie between 0 and 1", decay, "Values from 0.9 to 0.999 are usual")
        self.decay = float(decay)
        self.model: nn.Module | None = None
        self._trained: nn.Module | None = None

    def on_start(self, run: "Run") -> None:
        """Copy the model, and let the rounds embed the copy.

        Raises:
            TypeError: The model cannot be copied.
        """
        self.model = None
        try:
            copied = deepcopy(run.model)
        except Exception as error:
            remedy = "Pass `average_weights=False` to `fit`, or remove what cannot be copied"
            found = f"{type(error).__name__}: {error}".rstrip(".")
            raise type_error(
                "A model whose weights are averaged must support `copy.deepcopy`", found, remedy
            ) from error
        self._trained = run.model
        self.model = run.rounds.model = copied.requires_grad_(requires_grad=False)

    def on_step(self, _report: StepReport) -> None:
        """Update the average."""
        if self.model is None or self._trained is None:
            return
        for average, value in zip(_tensors(self.model), _tensors(self._trained), strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1 - self.decay)
            else:
                average.copy_(value)

    def on_end(self, run: "Run") -> None:
        """Copy the average into the model."""
        if self.model is not None:
            run.model.load_state_dict(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights."""
        return {"model": None if self.model is None else plain_state_dict(self.model)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averaged weights."""
        if self.model is not None and state["model"] is not None:
            load_plain_state_dict(self.model, state["model"])


def _tensors(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.detach() for tensor in [*model.parameters(), *model.buffers()]]
