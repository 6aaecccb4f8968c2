"""Measurements of steps and rounds as CSV files."""

import csv
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TextIO

from udmlss._checks import value_error
from udmlss._files import replace_file
from udmlss.training.callbacks.loggers.logger import Kind, Logger, Values

_NAMES: dict[Kind, str] = {"step": "steps.csv", "round": "history.csv"}


class CSVLogger(Logger):
    """Write `steps.csv`, a row per optimizer step, and `history.csv`, a row per round.

    Each row is on disk as soon as it is measured. The columns are the fields of `StepReport` and `RoundReport`, the
    label-free scores, the learning rate of every parameter group, and the seconds since the step before. A value that
    was not measured is empty. If `fit` computes label-free scores, the first row of `history.csv` has those before
    training, at step 0.

    A run that is resumed by a `Checkpoint` continues the files: rows of steps that are taken again are removed. A run
    that starts from scratch replaces the files of an earlier run in the folder.

    Args:
        folder: Folder of the files; it is created.

    Raises:
        ValueError: When training starts: the folder has a `steps.csv` or a `history.csv` of another program.
        OSError: When training starts: the folder cannot be created. A later error, such as a full disk, is a warning,
            and training continues.

    Example:
        `fit(model, images, ..., callbacks=CSVLogger("run/"))`
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder).expanduser()
        self._first: dict[Kind, int] = {}
        self._files: dict[Kind, TextIO] = {}

    def _connect(self) -> None:
        """Create the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _NAMES.values():
            with suppress(FileNotFoundError), (self.folder / name).open(newline="", encoding="utf-8") as file:
                header = file.readline()
                if header and not {"step", "loss"} <= set(header.strip().split(",")):
                    found = f"{name} with the columns {header.strip()[:80]}"
                    raise value_error("`folder` must not hold files of another program", found, "Choose another folder")

    def _open(self, first_step: int, first_round: int) -> None:
        """Set from which step on the rows of earlier files are removed."""
        self._first = {"step": first_step, "round": first_round}
        if first_round == 0:  # the first row of a new run is written at the end of its first round
            (self.folder / _NAMES["round"]).unlink(missing_ok=True)

    def _write(self, kind: Kind, step: int, values: Values) -> None:
        """Append a row."""
        del step  # is one of the values
        if kind not in self._files:
            self._files[kind] = _continue(self.folder / _NAMES[kind], list(values), self._first[kind])
        csv.writer(self._files[kind], lineterminator="\n").writerow(values.values())
        self._files[kind].flush()

    def _close(self, *, completed: bool) -> None:
        """Close the files."""
        del completed
        files, self._files = list(self._files.values()), {}
        for file in files:
            file.close()


def _continue(path: Path, columns: list[str], first: int) -> TextIO:
    """Open a file for appending, without its rows from a step on."""
    rows: list[dict[str, str]] = []
    with suppress(FileNotFoundError), path.open(newline="", encoding="utf-8") as file:
        complete = [row for row in csv.DictReader(file) if None not in row.values()]
        rows = [row for row in complete if int(row["step"]) < first]
    with replace_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path.open("a", newline="", encoding="utf-8")
