"""Checkpoints of a run, and the run's continuation after an interruption."""

import signal
import sys
import threading
from collections.abc import Collection
from functools import partial
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm.auto import tqdm

from udmlss._checks import check_integer, value_error
from udmlss._files import lock_folder
from udmlss.distributed import SynchronizedErrors, is_rank_zero, run_on_rank_zero
from udmlss.results import RoundReport, StepReport
from udmlss.training.callbacks.checkpoint_file import (
    checkpoints,
    clear_unfinished,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from udmlss.training.callbacks.setting_changes import load_with_changes
from udmlss.training.validation import in_steps
from udmlss.types import Epochs

if TYPE_CHECKING:
    from udmlss.training.run import Run

_EXIT_CODE = 128 + signal.SIGTERM  # the shell's exit code of a process that SIGTERM ended


class Checkpoint:
    """Save checkpoints, and resume an interrupted run from the newest one, bit for bit on the CPU.

    SIGTERM, by which cluster schedulers end a process, saves a checkpoint after the present step and ends the process.
    A checkpoint is also saved when a callback ends training after a step. Ctrl-C saves none.

    Args:
        folder: Folder of the run's checkpoints; it is created. One run at a time may use it.
        every: Number of optimizer steps between checkpoints, or `Epochs`. None saves at the end of every round. Step
            `max_steps` is always saved. If a callback ends training at the end of a round, a resumed run takes the
            steps since the last checkpoint again.
        keep_last: Number of checkpoints that are stored.
        resume: Whether to continue from the newest checkpoint in the folder, or from the start if it has none. Parts,
            images and settings must be those of the interrupted run, except `max_steps`, `refit_embedder`,
            `chunk_size`, `label_free`, `embeddings_folder`, `num_workers`, `progress`, settings of callbacks other than
            the decay of `WeightAverage`, and `allow_changes`. The number of images, their
            order in a `Subset` or a Hugging Face dataset, and the content of 16 images are compared; differences by
            rounding are ignored.
        allow_changes: Names of settings that may differ from those of the interrupted run, such as
            `("lr", "weight_decay")`: settings of the optimizer's parameter groups, "clip_norm" and "precision". The
            run continues with its own values, and a warning states the old and the new ones. If a scheduler has
            changed the learning rate, the new rate is changed by the same factor.

    Raises:
        ValueError: `keep_last` or `every` is below 1. When training starts: the folder has checkpoints and `resume` is
            False, is used by another process, has only damaged checkpoints, or its newest checkpoint is of another
            run; or there is no setting of a name in `allow_changes`.
        TypeError: When a checkpoint is saved: the state of a part holds an object that cannot be loaded again.
        OSError: The folder cannot be written to.

    Example:
        `fit(model, images, ..., callbacks=[Checkpoint("run/", resume=True)])`
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        every: int | Epochs | None = None,
        keep_last: int = 2,
        resume: bool = False,
        allow_changes: str | Collection[str] = (),
    ) -> None:
        check_integer("keep_last", keep_last, 1)
        if every is not None and not isinstance(every, Epochs):
            check_integer("every", every, 1)
        self.folder = Path(folder).expanduser()
        self.every = every
        self.keep_last = int(keep_last)
        self.resume = resume
        self.allow_changes = (allow_changes,) if isinstance(allow_changes, str) else tuple(allow_changes)
        self._run: Run | None = None
        self._steps_between = 1
        self._saved_step = -1
        self._lock: IO[str] | None = None
        self._handles_signal = False
        self._previous_handler: Any = None

    def on_start(self, run: "Run") -> None:
        """Resume the run from the newest checkpoint, and handle SIGTERM from now on."""
        self._run, self._saved_step = run, -1
        rounds = run.rounds
        self._steps_between = rounds.steps_per_round
        if self.every is not None:
            self._steps_between = in_steps("every", self.every, len(rounds.images), rounds.images_per_step)
        path = run_on_rank_zero(self._prepare_folder)
        if path is not None:
            # Files of other machines are not read: they may be missing, or left over from another run
            state = run_on_rank_zero(partial(read_checkpoint, path))
            with SynchronizedErrors():
                load_with_changes(run, state, self.allow_changes)
            self._saved_step = run.step
            if run.show_progress:
                tqdm.write(f"fit: resumes from {path}", file=sys.stderr)
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            self._previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
            self._handles_signal = True

    def on_step(self, report: StepReport) -> None:
        """Save if it is due or if training ends, and end the process if it received SIGTERM."""
        run = self._run
        if run is None:
            return
        is_last = report.step == run.rounds.n_steps or run.stop_request is not None
        self._save_or_end(due=is_last or report.step % self._steps_between == 0)

    def on_round(self, _report: RoundReport) -> None:
        """Save and end the process if it received SIGTERM."""
        self._save_or_end(due=False)

    def on_end(self, _run: "Run") -> None:
        """Release the folder, and restore the previous handling of SIGTERM."""
        if self._handles_signal:  # a handler that is not of Python is None
            previous = signal.SIG_DFL if self._previous_handler is None else self._previous_handler
            signal.signal(signal.SIGTERM, previous)
        if self._lock is not None:
            self._lock.close()
        self._run, self._lock, self._handles_signal = None, None, False

    def _save_or_end(self, *, due: bool) -> None:
        """Save if it is due or if the process received SIGTERM, which ends it.

        A step is saved once: at the end of a round, the state after its last step leads to the same run.

        Raises:
            SystemExit: The process received SIGTERM.
        """
        run = self._run
        if run is None:
            return
        ends = run.stop_request == "terminate"
        if (due or ends) and run.step != self._saved_step:
            state = run.state_dict()
            run_on_rank_zero(partial(save_checkpoint, self.folder, run.step, state, keep_last=self.keep_last))
            self._saved_step = run.step
        if ends:
            if is_rank_zero():
                tqdm.write(f"fit: received SIGTERM, saved step {run.step} in {self.folder}", file=sys.stderr)
            raise SystemExit(_EXIT_CODE)

    def _request_stop(self, _signal: int, _frame: object) -> None:
        if self._run is not None:
            self._run.request_stop("terminate")

    def _prepare_folder(self) -> Path | None:
        """Create and lock the folder; return the checkpoint from which the run resumes, if there is one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
        except (FileExistsError, NotADirectoryError) as error:
            rule = "`folder` must be a folder for checkpoints"
            raise value_error(rule, f"a path with a file, {self.folder}", "Choose another") from error
        except OSError as error:
            message = f"`folder` must be a folder that can be written to, got {self.folder}: {error}"
            raise OSError(message) from error
        clear_unfinished(self.folder)
        if self.resume:
            return newest_checkpoint(self.folder)
        if found := checkpoints(self.folder):
            remedy = "Pass `resume=True` to continue that run, or another folder"
            raise value_error("`folder` must not hold checkpoints of another run", found[0].name, remedy)
        return None
