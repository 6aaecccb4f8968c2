"""Measurements of steps and rounds as event files of TensorBoard."""

from os import PathLike
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from udmlss._checks import import_optional
from udmlss.training.callbacks.loggers.logger import Kind, Logger, Values, by_full_name


class TensorBoardLogger(Logger):
    """Write event files of TensorBoard, which `tensorboard --logdir FOLDER` shows.

    The names are those of `StepReport` and `RoundReport`, such as "step/loss" and "round/n_clusters", with the
    label-free scores, the learning rates as "step/lr_trunk" and the seconds since the step before.

    If a `Checkpoint` resumes the run, TensorBoard no longer shows the values of steps of the interrupted run that
    are taken again, and, if it resumes at the end of a round, those of the last step of this round. A run that starts
    from scratch hides an earlier run in the folder.

    Args:
        folder: Folder of the files; it is created.
        show_clusters: Number of clusters, from the largest to the smallest, of which 8 images are shown at the end of
            every round. 0 shows none.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: `show_clusters` is negative.
        OSError: When training starts: the folder cannot be created. A later error is a warning, and training continues.

    Example:
        `fit(model, images, ..., callbacks=TensorBoardLogger("run/", show_clusters=5))`
    """

    def __init__(self, folder: str | PathLike[str], *, show_clusters: int = 0) -> None:
        super().__init__(show_clusters)
        self._tensorboard = import_optional("torch.utils.tensorboard", "`TensorBoardLogger`", '"udmlss[tensorboard]"')
        self.folder = Path(folder).expanduser()
        self._writer: Any = None

    def _connect(self) -> None:
        """Create the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def _open(self, first_step: int, first_round: int) -> None:
        """Open an event file that hides earlier values from a step on."""
        self._writer = self._tensorboard.SummaryWriter(str(self.folder), purge_step=min(first_step, first_round))

    def _write(self, kind: Kind, step: int, values: Values) -> None:
        """Write scalars."""
        for name, value in by_full_name(kind, values).items():
            self._writer.add_scalar(name, value, step)

    def _write_image(self, step: int, image: UInt8[Tensor, "h w 3"]) -> None:
        """Write a sheet of clusters."""
        self._writer.add_image("clusters", image, step, dataformats="HWC")

    def _close(self, *, completed: bool) -> None:
        """Write what is in memory and close the event file."""
        del completed
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
