"""One optimiser step: a batch of images and their pseudo-labels to a slightly better model."""

from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from udmlss._checks import refusal
from udmlss.embedding import EmbeddingModel, autocast, device_of, place
from udmlss.losses import UDMLSSLoss
from udmlss.rotation import RotationPretextHead, rotate_four_ways
from udmlss.types import LossTerms, Precision


@dataclass(frozen=True)
class Measured:
    """What one step measured; the rotation figures are None without a head, the auxiliary loss without an auxiliary."""

    loss: float
    metric_loss: float
    rotation_loss: float | None
    rotation_accuracy: float | None
    auxiliary_loss: float | None


@dataclass(frozen=True)
class Step:
    """Everything one step needs; call it with a batch of images and their pseudo-labels."""

    model: EmbeddingModel
    criterion: UDMLSSLoss
    rotation_head: RotationPretextHead | None
    auxiliary: nn.Module | None
    optimizer: Optimizer
    scheduler: LRScheduler | None
    rotation_images: int
    precision: Precision
    channels_last: bool
    clip_norm: float | None
    draws: torch.Generator
    average: AveragedModel | None

    def __call__(self, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]) -> Measured:
        """Take the step, unless the loss is not finite.

        Raises:
            FloatingPointError: The loss is not finite; no parameter was changed.
            ValueError: The auxiliary gives no scalar; no parameter was changed.
        """
        device = device_of(self.model)
        images = place(images, device, channels_last=self.channels_last)
        with autocast(device, self.precision):
            embeddings = self.model(images)
            logits, turns = self._guess_turns(images)
            auxiliary = self._auxiliary_loss(images)
        terms = self.criterion.terms(embeddings, labels, logits, turns)
        total = terms.total if auxiliary is None else terms.total + auxiliary
        measured = _measure(total, terms, auxiliary, logits, turns)
        self.optimizer.zero_grad()
        total.backward()
        if self.clip_norm is not None:
            held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            clip_grad_norm_(held, self.clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return measured

    def _guess_turns(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "t 4"] | None, Int64[Tensor, " t"] | None]:
        if self.rotation_head is None:
            return None, None
        chosen = torch.randperm(len(images), generator=self.draws)[: self.rotation_images]
        turned, turns = rotate_four_ways(images[chosen.to(images.device)])
        return self.rotation_head(self.model.trunk(turned)), turns

    def _auxiliary_loss(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""] | None:
        if self.auxiliary is None:
            return None
        loss: Tensor = self.auxiliary(self.model, images)
        if loss.ndim:
            raise refusal("`auxiliary` must return a scalar", f"shape {tuple(loss.shape)}", "Return its mean")
        return loss.float()


def _measure(
    total: Tensor, terms: LossTerms, auxiliary: Tensor | None, logits: Tensor | None, turns: Tensor | None
) -> Measured:
    parts = {"metric": terms.metric, "rotation": terms.rotation}
    if auxiliary is not None:
        parts["auxiliary"] = auxiliary
    loss, *values = torch.stack([total, *parts.values()]).tolist()
    found = dict(zip(parts, values, strict=True))
    if not all(map(isfinite, [loss, *values])):
        listed = ", ".join(f"{name} {value}" for name, value in found.items())
        raise FloatingPointError(
            f"The loss must be finite; found {loss} ({listed}). "
            'Lower the learning rate, set `clip_norm=1.0`, or try `precision="float32"`.'
        )
    accuracy = None
    if logits is not None and turns is not None:
        accuracy = float(torch.eq(logits.argmax(dim=1), turns).float().mean())
    return Measured(
        loss=loss,
        metric_loss=found["metric"],
        rotation_loss=None if accuracy is None else found["rotation"],
        rotation_accuracy=accuracy,
        auxiliary_loss=found.get("auxiliary"),
    )
