"""All loggers log the same values, continue the log of an interrupted run, and leave the training as it is."""

import re
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tracker_readers
from short_training import Augmented, make_model, short_fit, weights

from udmlss import Checkpoint, CSVLogger, MLflowLogger, TensorBoardLogger, WandbLogger, parameter_groups
from udmlss.training.callbacks.loggers import logger as base

TRACKERS = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MLflowLogger}
WANDB = {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}


@pytest.fixture(params=TRACKERS)
def tracker(request, tmp_path, monkeypatch):
    """A log in `tmp_path` of a run that may be interrupted: `make()` returns a logger, `read()` what was logged."""
    name, folder = request.param, tmp_path / "log"
    yield from globals()[f"_{name}"](folder, monkeypatch)


def _csv(folder, _):
    yield SimpleNamespace(make=lambda: CSVLogger(folder), read=lambda: tracker_readers.read_csv(folder))


def _tensorboard(folder, _):
    pytest.importorskip("tensorboard")
    make = lambda: TensorBoardLogger(folder, show_clusters=2)  # noqa: E731
    yield SimpleNamespace(make=make, read=lambda: tracker_readers.read_tensorboard(folder))


def _wandb(folder, monkeypatch):
    wandb = pytest.importorskip("wandb")
    folder.mkdir()
    for key, value in WANDB.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    monkeypatch.setenv("WANDB_DIR", str(folder))
    wandb.init()

    def read():
        wandb.finish()
        wandb.teardown()  # waits until the process that writes the file has ended
        return tracker_readers.read_wandb(folder)

    yield SimpleNamespace(make=lambda: WandbLogger(show_clusters=2), read=read)
    wandb.finish()
    wandb.teardown()


def _mlflow(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(folder.as_uri())
    run = mlflow.start_run(run_name="test")
    read = lambda: tracker_readers.read_mlflow(mlflow.MlflowClient(), run.info.run_id)  # noqa: E731
    yield SimpleNamespace(make=lambda: MLflowLogger(show_clusters=2), read=read)
    mlflow.end_run()
    mlflow.set_tracking_uri(None)


class Recording:
    """Stores the reports, and raises an error once, after a step or at the end of a round."""

    def __init__(self, fail=None, error=RuntimeError):
        self.steps, self.rounds, self.fail, self.error = [], [], fail, error
        self.states = None

    def on_step(self, report):
        self.steps.append(report)
        self._fail("step", report)

    def on_round(self, report):
        self.rounds.append(report)
        self._fail("round", report)

    def on_end(self, run):
        # Not of Python's generator, from which the type checker of the tests samples
        self.states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    def _fail(self, kind, report):
        if self.fail == (kind, report.step):
            self.fail = None
            raise self.error


def train(*callbacks, **changes):
    """Train for six steps in two rounds, with a scheduler; return the result and the weights."""
    model = make_model()
    optimizer = torch.optim.SGD(parameter_groups(model, torch.nn.Identity(), trunk_lr=0.01, lr=0.02))
    parts = {"optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}
    result = short_fit(model, Augmented(), **parts, label_free=True, callbacks=callbacks, **changes)
    return result, weights(model)


@cache
def train_without_logger():
    """Train; return the reports, the result and the weights."""
    recording = Recording()
    return recording, *train(recording)


def rounded(logged):
    """Return the values in float32, in which TensorBoard stores them, without the times."""
    return {
        name: {step: float(np.float32(value)) for step, value in values.items()}
        for name, values in logged.items()
        if name[1] != "seconds"
    }


def expected(recording, start):
    """Return the values of the reports, as the readers return those of a logger."""
    found = {}
    rounds = [(report.step, asdict(report) | vars(report.label_free)) for report in recording.rounds]
    scores = [(report.step, {"score": report.label_free.score}) for report in recording.rounds]
    rates = [
        (step, {"lr_trunk": 0.01 / 2 ** (step - 1), "lr_new_parts": 0.02 / 2 ** (step - 1)}) for step in range(1, 7)
    ]
    steps = [(report.step, asdict(report)) for report in recording.steps]
    rows = {"step": steps + rates, "round": [(0, vars(start) | {"score": start.score}), *rounds, *scores]}
    for kind, listed in rows.items():
        for step, values in listed:
            for name, value in values.items():
                if name not in {"step", "round", "label_free"} and value is not None:
                    found.setdefault((kind, name), {})[step] = value
    return rounded(found)


def test_a_logger_writes_every_report_and_does_not_change_the_training(tracker):
    recording = Recording()
    result, trained = train(recording, tracker.make())
    other, _, trained_without = train_without_logger()
    assert torch.equal(trained, trained_without)
    assert recording.states == other.states
    logged, images = tracker.read()
    assert rounded(logged) == expected(recording, result.start)
    assert set(logged["step", "seconds"]) == {2, 3, 5, 6}  # not of steps after an embedding pass
    assert set(logged["round", "seconds"]) == {3, 6}
    assert images in ([], [3, 6])


def test_rates_are_logged_if_float16_overflows_in_the_first_step(tmp_path, monkeypatch):
    step, skipped = torch.amp.GradScaler.step, []

    def skip_the_first(scaler, optimizer):
        return step(scaler, optimizer) if skipped else skipped.append(optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "step", skip_the_first)
    short_fit(make_model(), Augmented(), callbacks=CSVLogger(tmp_path))
    logged, _ = tracker_readers.read_csv(tmp_path)
    assert set(logged["step", "lr_trunk"]) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("fail", [("step", 5), ("round", 3)])
def test_a_resumed_run_continues_the_log(tracker, tmp_path, fail):
    whole, result, _ = train_without_logger()
    checkpoint = {"every": 2} if fail[0] == "step" else {}
    for interruption in (fail, None):
        logger = tracker.make()
        with suppress(RuntimeError):
            train(logger, Recording(interruption), Checkpoint(tmp_path / "run", resume=True, **checkpoint))
    logged, images = tracker.read()
    wanted = expected(whole, result.start)
    if isinstance(logger, TensorBoardLogger) and not checkpoint:
        for name, values in wanted.items():
            if name[0] == "step":
                del values[3]  # was logged before a round that is logged again
    assert rounded(logged) == wanted
    assert images in ([], [3, 6])


def test_an_interrupted_training_leaves_a_complete_log(tracker):
    recording = Recording(("step", 4), KeyboardInterrupt)
    result, _ = train(recording, tracker.make())
    assert result.stop_reason == "interrupt"
    logged, _ = tracker.read()
    assert set(logged["step", "loss"]) == {1, 2, 3}  # the callback before the logger was interrupted
    assert set(logged["round", "loss"]) == {3}


def test_a_run_from_scratch_replaces_the_files_of_an_earlier_run(tmp_path):
    for make, read in (
        (CSVLogger, tracker_readers.read_csv),
        (TensorBoardLogger, tracker_readers.read_tensorboard),
    ):
        folder = tmp_path / make.__name__
        train(make(folder))
        train(make(folder), max_steps=2)
        assert set(read(folder)[0]["step", "loss"]) == {1, 2}
    with pytest.raises(RuntimeError):
        short_fit(make_model(), Augmented(), callbacks=[Recording(("step", 2)), CSVLogger(tmp_path / "CSVLogger")])
    assert [path.name for path in (tmp_path / "CSVLogger").iterdir()] == ["steps.csv"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_an_error_that_says_how_to_install_it(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=rf'Logger` requires {name}, .*pip install "udmlss\[{name}\]"'):
        TRACKERS[name](*[tmp_path] if name == "tensorboard" else [])


def test_a_logger_that_fails_warns_once_and_training_continues(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CSVLogger, "_write", fail)
    with pytest.warns(UserWarning, match="CSVLogger failed and logs nothing further, got OSError: .*No space") as found:
        result, trained = train(CSVLogger(tmp_path))
    assert len(found) == 1
    assert result.history[-1].step == 6
    assert torch.equal(trained, train_without_logger()[2])


def test_a_folder_that_cannot_be_used_is_an_error_before_training(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "history.csv").write_text("date,amount\n")
    for make in (CSVLogger, TensorBoardLogger):
        with pytest.raises(FileExistsError, match="file"):
            train(make(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"`folder` must not hold files of another program, got history\.csv with"):
        train(CSVLogger(tmp_path))
    assert (tmp_path / "history.csv").read_text() == "date,amount\n"


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "is_rank_zero", lambda: False)
    monkeypatch.setattr(base, "run_on_rank_zero", lambda function: None)
    train(CSVLogger(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_an_mlflow_logger_ends_the_run_that_it_started(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "log").as_uri())
    train(MLflowLogger())
    for fail in (("step", 2), ("round", 6)):
        with pytest.raises(RuntimeError):
            train(Recording(fail), MLflowLogger())
    assert mlflow.active_run() is None
    runs = mlflow.MlflowClient().search_runs(["0"], order_by=["attributes.start_time"])
    mlflow.set_tracking_uri(None)
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FAILED"]
    # A name of MLflow's own would be sampled from Python's generator
    assert all(re.fullmatch(r"udmlss [0-9: -]+", run.info.run_name) for run in runs)


def test_a_wandb_logger_finishes_the_run_that_it_started(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for key, value in WANDB.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(WandbLogger(), max_steps=2, relabel_every=1)
    assert wandb.run is None
    wandb.teardown()
    assert set(tracker_readers.read_wandb(tmp_path)[0]["round", "loss"]) == {1, 2}
