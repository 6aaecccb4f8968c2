"""Checkpoints of a run, and the run's continuation after an interruption."""

import os
import signal
import sys
import threading
from functools import partial
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tqdm.auto import tqdm

from udmlss._checks import check_integer, value_error
from udmlss.distributed import SynchronizedErrors, is_rank_zero, run_on_rank_zero
from udmlss.training.callbacks.checkpoint_file import (
    checkpoints,
    clear_unfinished,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from udmlss.training.validation import in_steps
from udmlss.types import Epochs, RoundReport, StepReport

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from udmlss.training.run import Run

_EXIT_CODE = 128 + signal.SIGTERM  # the shell's exit code of a process that SIGTERM ended


class Checkpoint:
    """Save checkpoints, and resume an interrupted run from the newest one, bit for bit on the CPU.

    SIGTERM, by which cluster schedulers end a process, saves a checkpoint and ends the process.

    Args:
        folder: Folder of the run's checkpoints; it is created. One run at a time may use it.
        every: Number of optimizer steps between checkpoints, or `Epochs`. None saves at the end of every round. The
            last step is always saved.
        keep_last: Number of checkpoints that are stored.
        resume: Whether to continue from the newest checkpoint in the folder, or from the start if it has none. Parts,
            images and settings must be those of the interrupted run, except `max_steps`, `num_workers`, `progress` and
            the number of checkpoints.

    Raises:
        ValueError: `keep_last` or `every` is below 1. When training starts: the folder has checkpoints and `resume` is
            False, is used by another process, or its newest checkpoint is of another run.
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
    ) -> None:
        check_integer("keep_last", keep_last, 1)
        if every is not None and not isinstance(every, Epochs):
            check_integer("every", every, 1)
        self.folder = Path(folder).expanduser()
        self.every = every
        self.keep_last = int(keep_last)
        self.resume = resume
        self._run: Run | None = None
        self._steps_between = 1
        self._lock: IO[str] | None = None
        self._previous_handler: object = None

    def on_start(self, run: "Run") -> None:
        """Resume the run from the newest checkpoint, and handle SIGTERM from now on."""
        self._run = run
        rounds = run.rounds
        self._steps_between = rounds.steps_per_round
        if self.every is not None:
            self._steps_between = in_steps("every", self.every, len(rounds.images), rounds.batch_size)
        path = run_on_rank_zero(self._prepare_folder)
        if path is not None:
            with SynchronizedErrors():
                run.load_state_dict(read_checkpoint(path))
            if run.show_progress:
                tqdm.write(f"fit: resumes from {path}", file=sys.stderr)
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            self._previous_handler = signal.signal(signal.SIGTERM, self._request_stop)

    def on_step(self, report: StepReport) -> None:
        """Save if it is due or if the process was asked to end."""
        if self._run is None:
            return
        due = report.step % self._steps_between == 0 or report.step == self._run.rounds.n_steps
        self._save_or_end(due=due)

    def on_round(self, _report: RoundReport) -> None:
        """Save if the process was asked to end."""
        self._save_or_end(due=False)

    def on_end(self, _run: "Run") -> None:
        """Release the folder, and restore the previous handling of SIGTERM."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)  # type: ignore[arg-type] # as signal() returned it
        if self._lock is not None:
            self._lock.close()
        self._run, self._lock, self._previous_handler = None, None, None

    def _save_or_end(self, *, due: bool) -> None:
        """Save if it is due. If the process was asked to end, save and end it.

        Raises:
            SystemExit: The process was asked to end.
        """
        run = self._run
        if run is None:
            return
        ends = run.stop_request == "terminate"
        if not due and not ends:
            return
        state = run.state_dict()
        save = partial(save_checkpoint, self.folder, run.step, state, keep_last=self.keep_last)
        path = run_on_rank_zero(save)
        if ends:
            if is_rank_zero():
                tqdm.write(f"fit: received SIGTERM, saved {path}", file=sys.stderr)
            raise SystemExit(_EXIT_CODE)

    def _request_stop(self, _signal: int, _frame: object) -> None:
        if self._run is not None:
            self._run.request_stop("terminate")

    def _prepare_folder(self) -> Path | None:
        """Create and lock the folder; return the checkpoint from which the run resumes, if there is one."""
        if self.folder.exists() and not self.folder.is_dir():
            raise value_error("`folder` must be a folder for checkpoints", f"the file {self.folder}", "Choose another")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder)
        clear_unfinished(self.folder)
        if self.resume:
            return newest_checkpoint(self.folder)
        if found := checkpoints(self.folder):
            remedy = "Pass `resume=True` to continue that run, or another folder"
            raise value_error("`folder` must not hold checkpoints of another run", found[0].name, remedy)
        return None


def _lock(folder: Path) -> IO[str]:
    """Open and lock a file in the folder, which also tests that the folder can be written to.

    Raises:
        ValueError: Another process holds the lock.
    """
    file = (folder / ".lock").open("a")
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        rule = "A folder of checkpoints must belong to one run at a time"
        remedy = "Wait for the other process to end, or choose another folder"
        raise value_error(rule, f"{os.fspath(folder)}, which another process uses", remedy) from error
    return file
