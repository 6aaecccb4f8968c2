"""One optimizer step: forward pass, losses, backward pass and update."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import inf, isfinite
from statistics import fmean

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from udmlss._checks import as_features, check_scalar
from udmlss._torch import autocast
from udmlss.distributed import data_parallel, gather, mean_over_ranks, world_size
from udmlss.models.batch_norm import constant_statistics
from udmlss.results import StepReport
from udmlss.training.run import Run
from udmlss.types import Precision

Batch = tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]
Rotations = tuple[Float[Tensor, "t 4"], Int64[Tensor, " t"]]


class TrainingStep:
    """Take optimizer steps on the parts of a run, each with the mean gradient of `accumulate_grad_batches` batches.

    Args:
        run: The run, whose step counter is increased.
        freeze_batch_norm: Whether the statistics of batch normalization are fixed. If they are, rotation needs no
            second forward pass of the upright images.
        precision: Precision of the forward passes.
        chunk_size: Number of images per forward and backward pass of the embeddings. None passes all at once.
        clip_norm: Largest norm of the gradient of all parameters. None does not clip.
    """

    def __init__(
        self,
        run: Run,
        *,
        freeze_batch_norm: bool,
        precision: Precision,
        clip_norm: float | None,
        chunk_size: int | None = None,
    ) -> None:
        self.run = run
        self.max_norm = inf if clip_norm is None else float(clip_norm)
        reuse_features = freeze_batch_norm and chunk_size is None
        self.losses = _Losses(run, reuse_features=reuse_features, precision=precision, chunk_size=chunk_size)
        self._shapes = self._parameter_shapes()
        self.parallel = data_parallel(self.losses)

    def __call__(self, batches: Iterator[Batch]) -> StepReport:
        """Load the batches of a step and take it.

        Raises:
            FloatingPointError: The loss or the gradient is not finite. Parameters, buffers and optimizer are as before.
            ValueError: The auxiliary loss is not a scalar.
        """
        run = self.run
        if self._shapes != self._parameter_shapes():  # DistributedDataParallel does not accept other shapes
            self._shapes = self._parameter_shapes()
            del self.parallel  # the gradients of its parameters are bound to it while it exists
            self.parallel = data_parallel(self.losses)
        buffers = [(buffer, buffer.clone()) for module in run.modules.values() for buffer in module.buffers()]
        try:
            run.optimizer.zero_grad()
            terms = [self._backward(batches) for _ in range(run.rounds.accumulate_grad_batches)]
            self._clip_gradient()
        except FloatingPointError:
            run.optimizer.zero_grad()
            for buffer, value in buffers:
                buffer.copy_(value)
            raise
        scale = run.scaler.get_scale()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.step += 1
        if run.scheduler is not None and run.scaler.get_scale() >= scale:  # otherwise the optimizer took no step
            run.scheduler.step()
        means = {name: fmean(batch[name] for batch in terms) for name in terms[0]}
        return StepReport(
            step=run.step,
            loss=means["loss"],
            metric_loss=means["metric_loss"],
            rotation_loss=means.get("rotation_loss"),
            rotation_accuracy=means.get("rotation_accuracy"),
            auxiliary_loss=means.get("auxiliary_loss"),
        )

    def _backward(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Add the gradient of the next batch, divided by the number of batches of a step, and return its losses.

        Ranks average their gradients after each batch, because `no_sync` fails with a static graph (pytorch#143580).
        """
        losses = self.parallel(partial(self._load, batches))
        self.run.scaler.scale(losses["loss"] / self.run.rounds.accumulate_grad_batches).backward()
        return _mean_over_ranks(losses)  # after the backward pass, because reading them waits for the GPU

    def _load(self, batches: Iterator[Batch]) -> Batch:
        return next(batches)

    def _parameter_shapes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self.losses.parameters()]

    def _clip_gradient(self) -> None:
        """Clip the gradient; raise FloatingPointError if it is not finite although the loss is not scaled up."""
        scaler = self.run.scaler
        scaler.unscale_(self.run.optimizer)
        parameters = [parameter for group in self.run.optimizer.param_groups for parameter in group["params"]]
        norm = float(clip_grad_norm_(parameters, self.max_norm))
        if not isfinite(norm) and scaler.get_scale() <= 1:  # with a higher scale the step is skipped
            raise FloatingPointError(f"The gradient must be finite, got a norm of {norm}. {_REMEDY}")


class _Losses(nn.Module):
    """All trained modules in one, so that `DistributedDataParallel` can average their gradients.

    The metric loss is computed from the embeddings of all ranks, the other losses from the images of this rank.
    """

    def __init__(self, run: Run, *, reuse_features: bool, precision: Precision, chunk_size: int | None) -> None:
        super().__init__()
        self.model = run.model
        self.criterion = run.criterion
        self.rotation_head = run.rotation_head
        self.auxiliary = run.auxiliary
        self.run = run
        self.reuse_features = reuse_features
        self.precision = precision
        self.chunk_size = chunk_size

    def forward(self, load_batch: Callable[[], Batch]) -> dict[str, Float[Tensor, ""]]:
        """Load a batch and return the total loss and its terms.

        Loading happens here because one synchronization of errors then serves loading and the forward pass.
        """
        with self.run.synchronized_step(), autocast(self.model, self.precision):
            images, labels = load_batch()
            own_embeddings, rotations = self._embed(images)
            auxiliary = self._auxiliary_loss(images)
        # if the criterion samples at random, the losses of the ranks are equal in expectation, as are the gradients
        embeddings = gather(own_embeddings, equal_losses=True)
        terms = self.criterion.terms(embeddings, gather(labels), *(rotations or (None, None)))
        total = terms.total + _zero_times_parameters(self.criterion)
        losses = {"loss": total, "metric_loss": terms.metric}
        if rotations is not None:
            losses["rotation_loss"] = terms.rotation
            losses["rotation_accuracy"] = torch.eq(rotations[0].argmax(dim=1), rotations[1]).float().mean()
        if auxiliary is not None:
            total = total + auxiliary + _zero_times_parameters(self.auxiliary)
            losses |= {"loss": total, "auxiliary_loss": auxiliary}
        return losses

    def _embed(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], Rotations | None]:
        if self.rotation_head is None:
            return self._embed_in_chunks(images), None
        if not self.reuse_features:
            embeddings = self._embed_in_chunks(images)
            return embeddings, self.rotation_head.predict_rotations(self.model, images)
        features = as_features(self.model.trunk(images))
        embeddings = self.model.embed_features(features)
        return embeddings, self.rotation_head.predict_rotations(self.model, images, features)

    def _embed_in_chunks(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Embed the images; the activations of a chunk are computed again in its backward pass instead of stored."""
        if self.chunk_size is None or len(images) <= self.chunk_size:
            embeddings: Tensor = self.model(images)
            return embeddings
        chunks = [
            checkpoint(self.model, chunk, use_reentrant=False, context_fn=self._contexts)
            for chunk in images.split(self.chunk_size)
        ]
        return torch.cat(chunks)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first forward pass of a chunk and of its repetition."""
        return nullcontext(), constant_statistics(self.model)

    def _auxiliary_loss(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""] | None:
        if self.auxiliary is None:
            return None
        loss: Tensor = self.auxiliary(self.model, images)
        check_scalar("auxiliary", loss)
        return loss.float()


def _zero_times_parameters(module: nn.Module | None) -> Tensor | float:
    """Return a zero that depends on every parameter of the module, or 0.0 in a single process.

    The static graph of `DistributedDataParallel` needs a gradient of every parameter in every step, also of a loss
    that finds no triplet in a batch.
    """
    if module is None or world_size() == 1:
        return 0.0
    return sum((0 * parameter.sum() for parameter in module.parameters() if parameter.requires_grad), start=0.0)


_REMEDY = 'Lower the learning rate, pass `clip_norm=1.0`, or use `precision="float32"`.'


def _mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each value over ranks, or raise FloatingPointError if a loss is not finite."""
    means = dict(zip(losses, mean_over_ranks(torch.stack(list(losses.values()))).tolist(), strict=True))
    if not all(map(isfinite, means.values())):
        terms = {name.removesuffix("_loss"): value for name, value in means.items() if name.endswith("_loss")}
        listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        raise FloatingPointError(f"The loss must be finite, got {means['loss']} ({listed}). {_REMEDY}")
    return means
