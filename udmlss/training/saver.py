"""Where a run pauses: its state is saved when that is due, and when the system asks the process to end."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from udmlss._checks import value_error
from udmlss.distributed import SynchronizedErrors, is_rank_zero, run_on_rank_zero
from udmlss.training.checkpoint import (
    checkpoints,
    clear_unfinished,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from udmlss.training.state_dict import RunState

_ASKED_TO_END = 128 + signal.SIGTERM  # what a shell calls a process that ended so


class Saver:
    """Saves a run's state.

    Args:
        state: The run's state.
        folder: Where the checkpoints go.
        n_kept: How many stay.
    """

    def __init__(self, state: RunState, folder: Path, *, n_kept: int) -> None:
        self.state = state
        self.folder = folder
        self.n_kept = n_kept
        self._asked_to_end = False

    def begin(self, *, resume: bool) -> Path | None:
        """Load the newest checkpoint if the run is to go on, and say which; else see that there is none.

        Raises:
            ValueError: There are checkpoints and the run is to begin anew; none of them can be read; or the newest is
                of another run.
        """
        path = run_on_rank_zero(partial(self._clear, resume=resume))
        if path is not None:
            with SynchronizedErrors():
                self.state.load_state_dict(read_checkpoint(path))
        return path

    def _clear(self, *, resume: bool) -> Path | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(self.folder)
        if resume:
            return newest_checkpoint(self.folder)
        if found := checkpoints(self.folder):
            remedy = "Pass `resume=True` to go on with it, or another folder"
            raise value_error("`checkpoint` must be a folder without checkpoints", f"{found[0].name} there", remedy)
        return None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let a SIGTERM be answered at the next `pause` in the `with` block."""
        if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def pause(self, step: int, *, due: bool) -> None:
        """Save if it is due, or if the process is asked to end, which it does then.

        Raises:
            SystemExit: The process is asked to end.
            OSError: The checkpoint cannot be written.
        """
        with SynchronizedErrors() as fate:
            if self._asked_to_end:
                fate.ask_stop()
        if not due and not fate.stop:
            return
        state = self.state.state_dict()
        path = run_on_rank_zero(lambda: save_checkpoint(self.folder, step, state, n_kept=self.n_kept))
        if fate.stop:
            if is_rank_zero():
                tqdm.write(f"fit: asked to end, saved {path}", file=sys.stderr)
            raise SystemExit(_ASKED_TO_END)

    def _note(self, _signal: int, _frame: object) -> None:
        self._asked_to_end = True
