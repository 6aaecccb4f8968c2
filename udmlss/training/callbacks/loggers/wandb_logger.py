"""Measurements of steps and rounds in Weights & Biases."""

from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from udmlss._checks import import_optional
from udmlss.training.callbacks.loggers.logger import Kind, Logger, Values, by_full_name


class WandbLogger(Logger):
    """Log to a run of Weights & Biases.

    The run is the one that `wandb.init` has started, which remains open. If there is none, the logger starts one, to
    which the environment variables of wandb apply, such as `WANDB_PROJECT` and `WANDB_MODE`, and finishes it when
    training ends. Under `torchrun`, call `wandb.init` on rank 0 only. The names are those of `TensorBoardLogger`.

    Steps of a run that were logged before are not logged again. To continue a run after an interruption, start it by
    `wandb.init(id=..., resume="allow")`.

    Args:
        show_clusters: Number of clusters, from the largest to the smallest, of which 8 images are shown at the end of
            every round. 0 shows none.

    Raises:
        ImportError: wandb is not installed.
        ValueError: `show_clusters` is negative.

    Example:
        `fit(model, images, ..., callbacks=WandbLogger(show_clusters=5))`
    """

    def __init__(self, *, show_clusters: int = 0) -> None:
        super().__init__(show_clusters)
        self._wandb = import_optional("wandb", "`WandbLogger`", '"udmlss[wandb]"')
        self._tracked: Any = None
        self._owns_run = False

    def _connect(self) -> None:
        """Start a run unless there is one."""
        self._owns_run = self._wandb.run is None
        self._tracked = self._wandb.init() if self._owns_run else self._wandb.run
        self._first_step = self._tracked.step

    def _write(self, kind: Kind, step: int, values: Values) -> None:
        """Write values."""
        self._log_values(step, by_full_name(kind, values))

    def _write_image(self, step: int, image: UInt8[Tensor, "h w 3"]) -> None:
        """Write a sheet of clusters."""
        self._log_values(step, {"clusters": self._wandb.Image(image.numpy())})

    def _close(self, *, completed: bool) -> None:
        """Finish a run that the logger has started."""
        run, self._tracked = self._tracked, None
        if run is not None and self._owns_run:
            run.finish(exit_code=0 if completed else 1)

    def _log_values(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._first_step:  # wandb ignores the steps before a resumed run, with a warning for each
            self._tracked.log(values, step=step)
