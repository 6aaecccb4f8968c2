"""One optimiser step: a batch of images and their pseudo-labels to a slightly better model."""

from math import isfinite

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from udmlss._checks import value_error
from udmlss._torch import autocast, device_of, to_device
from udmlss.distributed import SynchronizedErrors, gather, mean_over_ranks
from udmlss.inference import InferenceOptions
from udmlss.losses import UDMLSSLoss
from udmlss.models.embedding_model import EmbeddingModel
from udmlss.models.rotation import RotationPretextHead, rotate_four_ways
from udmlss.training.state import Parts
from udmlss.types import Precision, StepReport


class Step:
    """Everything one step needs; call it with a batch of images and their pseudo-labels.

    Args:
        parts: What learns, and what teaches it.
        losses: A batch to its losses, with the parts in it.
        passing: How images go through the model.
        rotation_images: Images of a batch that are turned, if there is a rotation head.
        clip_norm: Largest norm of the gradient of all parameters together. None does not clip.
    """

    def __init__(
        self,
        parts: Parts,
        losses: nn.Module,
        passing: InferenceOptions,
        *,
        rotation_images: int,
        clip_norm: float | None,
    ) -> None:
        self.parts = parts
        self.losses = losses
        self.passing = passing
        self.rotation_images = 0 if parts.rotation_head is None else rotation_images
        self.clip_norm = clip_norm

    def __call__(
        self, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]
    ) -> tuple[StepReport, Float[Tensor, "_ d"]]:
        """Take the step, unless the loss is not finite.

        Returns:
            What was measured, and the embeddings before the step, of all ranks.

        Raises:
            FloatingPointError: The loss is not finite; no parameter was changed.
            ValueError: The auxiliary gives no scalar; no parameter was changed.
        """
        images = to_device(images, device_of(self.parts.model), channels_last=self.passing.channels_last)
        turned = torch.randperm(len(images))[: self.rotation_images]
        found = self.losses(images, labels, turned)
        embeddings = found.pop("embeddings").detach()
        report = _report(found)
        self.parts.optimizer.zero_grad()
        found["loss"].backward()
        self._learn()
        return report, embeddings

    def _learn(self) -> None:
        parts = self.parts
        if self.clip_norm is not None:
            held = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
            clip_grad_norm_(held, self.clip_norm)
        parts.optimizer.step()
        if parts.scheduler is not None:
            parts.scheduler.step()
        if parts.average is not None:
            parts.average.update_parameters(parts.model)


class Losses(nn.Module):
    """A batch to its losses: all that learns in one module, so that `DistributedDataParallel` can hold it.

    The metric loss is that of the embeddings of all ranks; the others are of this rank's images.

    Args:
        model: Images to embeddings.
        criterion: Embeddings, labels and turns to the loss.
        rotation_head: Reads the features of turned images.
        auxiliary: Model and images to a further loss.
        upright_once: Whether the images to turn go through the trunk upright with the batch alone, and not once more
            beside their turned selves: less work for the same, unless batch norm makes them differ.
        precision: Of forward passes.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        criterion: UDMLSSLoss,
        *,
        rotation_head: RotationPretextHead | None,
        auxiliary: nn.Module | None,
        upright_once: bool,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.rotation_head, self.auxiliary = rotation_head, auxiliary
        self.upright_once = upright_once
        self.precision = precision

    def forward(
        self, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"], turned: Int64[Tensor, " r"]
    ) -> dict[str, Float[Tensor, "..."]]:
        """Return the loss, what it is made of, and the embeddings of all ranks.

        Args:
            images: The batch, on the model's device.
            labels: Pseudo-label of each image.
            turned: Which of them are turned, if there is a rotation head.
        """
        with SynchronizedErrors(), autocast(images.device, self.precision):
            own, logits, turns = self._see(images, turned)
            auxiliary = self._auxiliary_loss(images)
        embeddings = gather(own)
        terms = self.criterion.terms(embeddings, gather(labels), logits, turns)
        total = terms.total + _zero_times_all_parameters(self.criterion)
        found = {"embeddings": embeddings, "loss": total, "metric_loss": terms.metric}
        if logits is not None and turns is not None:
            found["rotation_loss"] = terms.rotation
            found["rotation_accuracy"] = torch.eq(logits.argmax(dim=1), turns).float().mean()
        if auxiliary is not None:
            total = total + auxiliary + _zero_times_all_parameters(self.auxiliary)
            found |= {"loss": total, "auxiliary_loss": auxiliary}
        return found

    def _see(
        self, images: Float[Tensor, "b c h w"], turned: Int64[Tensor, " r"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "t 4"] | None, Int64[Tensor, " t"] | None]:
        """Return the embeddings of the batch, and of turned images what the head says and their turns."""
        if self.rotation_head is None:
            return self.model(images), None, None
        turned = turned.to(images.device)
        turned_images, turns = rotate_four_ways(images[turned])
        if not self.upright_once:
            return self.model(images), self.rotation_head(self.model.trunk(turned_images)), turns
        features = self.model.trunk(images)
        others = self.model.trunk(turned_images[len(turned) :])
        logits = self.rotation_head(torch.cat([features[turned], others]))
        return self.model.embed_features(features), logits, turns

    def _auxiliary_loss(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""] | None:
        if self.auxiliary is None:
            return None
        loss: Tensor = self.auxiliary(self.model, images)
        if loss.ndim:
            raise value_error("`auxiliary` must return a scalar", f"shape {tuple(loss.shape)}", "Return its mean")
        return loss.float()


def _zero_times_all_parameters(module: nn.Module | None) -> Tensor | float:
    """Return zero, of which each parameter of the module is a part.

    With it all take part in each step, as DistributedDataParallel's static graph asks: also those of a loss that finds
    no triplet in this batch.
    """
    parameters = () if module is None else module.parameters()
    return sum((0 * parameter.sum() for parameter in parameters if parameter.requires_grad), start=0.0)


def _report(found: dict[str, Tensor]) -> StepReport:
    values = dict(zip(found, mean_over_ranks(torch.stack(list(found.values()))).tolist(), strict=True))
    if not all(map(isfinite, values.values())):
        listed = ", ".join(f"{name.removesuffix('_loss')} {value}" for name, value in values.items() if "_loss" in name)
        raise FloatingPointError(
            f"The loss must be finite, got {values['loss']} ({listed}). "
            'Lower the learning rate, set `clip_norm=1.0`, or try `precision="float32"`.'
        )
    return StepReport(
        loss=values["loss"],
        metric_loss=values["metric_loss"],
        rotation_loss=values.get("rotation_loss"),
        rotation_accuracy=values.get("rotation_accuracy"),
        auxiliary_loss=values.get("auxiliary_loss"),
    )
