"""The folder of a run: its files, its settings, and a lock."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from pyarrow import parquet
from torch import Tensor

from udmlss import PseudoLabels
from udmlss._checks import value_error
from udmlss._files import lock_folder, replace_file
from udmlss.cli.images import check_unicode
from udmlss.cli.summary import TrainedRun
from udmlss.neighbors import NeighborLists

FORMAT = 1
_ADDED_SETTINGS = {"ignore_orientation": False}  # which runs of earlier versions do not have


class RunFolder:
    """The folder of a run, RUN.

    Args:
        folder: Path of the folder.

    Attributes:
        folder: Path of the folder.
        model: Folder of the trained model.
        embeddings: Embeddings of the images, a .npy file (n, d).
        start_embeddings: Embeddings before training, a .npy file (n, d) in float16.
        images: Path, cluster, reliability and neighbors of each image, a .parquet file.
        history: One row per round, a .csv file.
        report: The report, an .html file.
        checkpoints: Folder of the checkpoints, which is removed at the end of a run.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.model = self.folder / "model"
        self.embeddings = self.folder / "embeddings.npy"
        self.start_embeddings = self.folder / "embeddings-before.npy"
        self.images = self.folder / "images.parquet"
        self.history = self.folder / "history.csv"
        self.report = self.folder / "report.html"
        self.checkpoints = self.folder / "checkpoints"
        self._state = self.folder / "run.json"

    @classmethod
    def finished(cls, folder: str | os.PathLike[str], name: str = "run") -> "RunFolder":
        """Open the folder of a finished run, the argument of this name.

        Raises:
            ValueError: The folder has no run, or the run is not finished.
        """
        run = cls(folder)
        if not run._state.is_file():
            kind = "a file" if run.folder.is_file() else "no such folder"
            found = "a folder without run.json" if run.folder.is_dir() else kind
            rule, remedy = f"`{name}` must be the folder of a run", "Train first: udmlss train FOLDER --out RUN"
            raise value_error(rule, f"{run.folder}, {found}", remedy)
        if not run.is_finished:
            remedy = "Run the same `udmlss train` again, which resumes it"
            raise value_error(f"`{name}` must be a finished run", f"{run.folder}, which is not", remedy)
        return run

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished."""
        return "summary" in self._read()

    @property
    def has_checkpoints(self) -> bool:
        """Whether a training was interrupted that can be resumed."""
        return any(self.checkpoints.glob("step-*.pt"))

    @property
    def has_run_files(self) -> bool:
        """Whether the folder has files that only a run has; run.json may also be the file of another program."""
        return self._state.is_file() and (self.images.is_file() or self.has_checkpoints)

    @property
    def ignore_colors(self) -> bool | None:
        """Whether to ignore colors; None if that was not found out."""
        found: bool | None = self._read().get("ignore_colors")
        return found

    @ignore_colors.setter
    def ignore_colors(self, chosen: bool) -> None:
        self._write(self._read() | {"ignore_colors": chosen})

    def read_summary(self) -> TrainedRun:
        """Return the result of a finished run."""
        return TrainedRun.from_dict(self.folder, self._read()["summary"])

    def finish(self, summary: TrainedRun) -> None:
        """Store the result, which marks the run as finished, and remove the checkpoints."""
        self._write(self._read() | {"summary": summary.as_dict()})
        remove(self.checkpoints)

    def write_images(self, paths: Sequence[Path], pseudo_labels: PseudoLabels, neighbors: NeighborLists) -> None:
        """Write the path, the cluster, its reliability and the nearest neighbors of each image."""
        names = pa.array([str(path) for path in paths], pa.large_string())
        n, k = neighbors.indices.shape
        offsets = pa.array(range(0, n * k + 1, k), pa.int64())

        def lists(values: pa.Array) -> pa.Array:
            return pa.LargeListArray.from_arrays(offsets, values)

        reliability = pseudo_labels.reliability
        table = {
            "path": names,
            "cluster": pseudo_labels.labels.numpy(),
            "reliability": pa.nulls(n, pa.float32()) if reliability is None else reliability.float().numpy(),
            "neighbors": lists(names.take(pa.array(neighbors.indices.flatten().numpy()))),
            "similarities": lists(pa.array(neighbors.similarities.flatten().float().numpy())),
        }
        with replace_file(self.images) as part:
            parquet.write_table(pa.table(table), part)

    def read_paths(self) -> list[Path]:
        """Return the path of each image."""
        return [Path(path) for path in self._column("path").to_pylist()]

    def read_embeddings(self) -> Float[Tensor, "n d"]:
        """Return the embeddings of the images."""
        return torch.from_numpy(np.load(self.embeddings))

    def read_pseudo_labels(self) -> PseudoLabels:
        """Return the clusters of the images."""
        pseudo_labels = PseudoLabels.from_labels(self._column("cluster").to_numpy())
        reliability = self._column("reliability")
        if reliability.null_count == len(reliability):
            return pseudo_labels
        return replace(pseudo_labels, reliability=torch.from_numpy(reliability.to_numpy().copy()))

    def _column(self, name: str) -> pa.ChunkedArray:
        return parquet.read_table(self.images, columns=[name]).column(name)

    def check(self) -> None:
        """Check that the folder can be used, before the images are read.

        Raises:
            ValueError: The folder has other files, has a path that is not valid Unicode, or another process uses it.
            OSError: The folder of an existing run cannot be written to.
        """
        check_unicode([self.folder])
        self._check_files()
        if self._state.exists():
            lock_folder(self.folder).close()

    @contextmanager
    def claim(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Create the folder, store or compare the settings of the run, and lock the folder during the block.

        Raises:
            ValueError: The folder has other files, belongs to a run with other settings, or has a path that is not
                valid Unicode, or another process uses it.
            OSError: The folder cannot be written to.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.folder):
            self._compare(settings)
            self._remove_remains()
            yield

    def _remove_remains(self) -> None:
        """Remove the temporary files of a killed process."""
        for pattern in ("*.part", "*.previous"):
            for path in self.folder.glob(pattern):
                remove(path)
        if self.is_finished:
            remove(self.checkpoints)

    def _check_files(self) -> None:
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            kind = "file" if self.folder.exists() else "broken link"
            raise value_error("`out` must be a folder", f"the {kind} {self.folder}", "Choose another name")
        if self.folder.is_dir() and not self._state.exists():
            found = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
            others = sorted(path.name for path in found if not path.match("run.json.*.part"))  # of a killed process
            if others:
                rule = "`out` must be a new folder, an empty folder or the folder of a run"
                raise value_error(rule, f"{self.folder} with {others[0]}", "Choose another name")

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Store the settings of a new run; raise ValueError if those of a finished or interrupted run differ."""
        stored = self._read().get("settings")
        if stored is None or not (self.is_finished or self.has_checkpoints):
            self._write({"format": FORMAT, "settings": dict(settings)})
            return
        before = {name: stored.get(name, _ADDED_SETTINGS.get(name)) for name in {**stored, **settings}}
        changed = [
            f"{name}: {value} before and {settings.get(name)} now"
            for name, value in before.items()
            if value != settings.get(name)
        ]
        if changed:
            rule = f"The run in {self.folder} must be continued with its own images and settings"
            raise value_error(rule, "; ".join(changed), "Use the same ones, or another folder as `out`")

    def _read(self) -> dict[str, Any]:
        if not self._state.exists():
            return {}
        rule, remedy = "run.json must be the file of a run", "Choose another folder"
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except ValueError as error:
            raise value_error(rule, f"{self._state}: {error}", remedy) from error
        if not isinstance(state, dict):
            raise value_error(rule, f"{self._state}, which holds a {type(state).__name__}", remedy)
        if state.get("format") != FORMAT:
            remedy = "Read it with the version of udmlss that wrote it"
            raise value_error(f"A run must have format {FORMAT}", f"{state.get('format')} in {self._state}", remedy)
        return state

    def _write(self, state: Mapping[str, Any]) -> None:
        with replace_file(self._state) as part:
            part.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
