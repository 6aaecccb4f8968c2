"""Folders of checkpoints: which files they hold, who may use them, and what a resumed run must have in common."""

import os
import resource
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from interrupted_training import N, Noisy, adam, assert_same, train
from pytorch_metric_learning import losses, miners
from sklearn.cluster import KMeans

from udmlss import (
    BestWeights,
    Checkpoint,
    ClusterPseudoLabeler,
    EarlyStopping,
    Epochs,
    UDMLSSLoss,
    WeightAverage,
)


def saved_steps(folder):
    """Return the steps of the checkpoints; each has its checksum."""
    names = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    steps = [int(name[5:14]) for name in names if name.endswith(".pt")]
    assert names == [name for step in steps for name in (f"step-{step:09d}.pt", f"step-{step:09d}.pt.sha256")]
    return steps


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [8, 11]),
        ({"keep_last": 9}, [4, 8, 11]),
        ({"every": 3, "keep_last": np.int64(3)}, [6, 9, 11]),
        ({"every": Epochs(1)}, [6, 11]),
    ],
)
def test_saves_every_few_steps_and_the_last_one_and_removes_old_files(settings, steps, tmp_path):
    train(Checkpoint(str(tmp_path), **settings))
    assert saved_steps(tmp_path) == steps


def test_a_checkpoint_can_be_read_without_running_code(tmp_path):
    callbacks = [WeightAverage(0.5), BestWeights()]
    train(Checkpoint(tmp_path), callbacks=callbacks, scheduler=None, optimizer=adam, rotation_head=None)
    found = torch.load(tmp_path / "step-000000011.pt", weights_only=True)
    assert found["format"] == 3
    assert set(found["modules"]) == {"model", "criterion"}


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train(Checkpoint("~/run"), max_steps=1)
    assert saved_steps(tmp_path / "run") == [1]


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_rejects_a_file_as_folder(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"`folder` must be a folder for checkpoints, got .*{name}\. Choose another"):
        train(Checkpoint(tmp_path / name))


@contextmanager
def without_privileges():
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # file permissions do not hold for the root user
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", [".", "new"])
def test_rejects_a_folder_that_cannot_be_written_to(name, tmp_path):
    tmp_path.chmod(0o555)
    rule = r"`folder` must be a folder that can be written to, got .*Permission denied"
    with without_privileges(), pytest.raises(OSError, match=rule):
        train(Checkpoint(tmp_path / name))
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_does_not_overwrite_another_run(tmp_path):
    train(Checkpoint(tmp_path), max_steps=5)
    rule = r"`folder` must not hold checkpoints of another run, got step-000000005\.pt\. Pass `resume=True`"
    with pytest.raises(ValueError, match=rule):
        train(Checkpoint(tmp_path))
    assert saved_steps(tmp_path) == [4, 5]


def test_removes_files_of_an_interrupted_save(tmp_path):
    train(Checkpoint(tmp_path), max_steps=5)
    (tmp_path / "step-000000009.part").touch()
    (tmp_path / "step-000000009.pt.sha256").touch()
    train(Checkpoint(tmp_path, resume=True))
    assert saved_steps(tmp_path) == [8, 11]


def test_a_full_disk_is_an_error_that_leaves_earlier_checkpoints(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(_report):
        if saved_steps(tmp_path) == [4]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))

    rule = r"step-000000008\.pt could not be written; earlier checkpoints are unchanged\. .*too large"
    try:
        with pytest.raises(OSError, match=rule):
            train(fill_disk, Checkpoint(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved_steps(tmp_path) == [4]
    assert_same(train(Checkpoint(tmp_path, resume=True)), train())


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_byte, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_skipped_and_no_good_one_is_removed_for_it(damage, tmp_path):
    train(Checkpoint(tmp_path), max_steps=8)
    damage(tmp_path / "step-000000008.pt")
    message = r"step-000000008\.pt does not match its checksum and was renamed to step-000000008\.pt\.damaged"
    with pytest.warns(UserWarning, match=message):
        resumed = train(Checkpoint(tmp_path, every=1, keep_last=1, resume=True), max_steps=7)
    assert_same(resumed, train(max_steps=7))
    (tmp_path / "step-000000008.pt.damaged").unlink()
    assert saved_steps(tmp_path) == [7]
    assert_same(train(Checkpoint(tmp_path, resume=True)), train())


def test_a_folder_with_damaged_checkpoints_only_is_an_error_each_time(tmp_path):
    train(Checkpoint(tmp_path, keep_last=1), max_steps=4)
    (tmp_path / "step-000000004.pt.sha256").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"must match the checksum in its \.sha256 file, got none that does in"):
            train(Checkpoint(tmp_path, resume=True))


class Stateful:
    """A callback with a given state."""

    def __init__(self, value):
        self.value = value

    def on_round(self, report):
        pass

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def numpy_parts():
    """Return parts with NumPy numbers in the state of the optimizer, scheduler, labeler and a callback."""
    labeler = ClusterPseudoLabeler(np.int64(6), seed=np.int32(3))
    labeler._round = np.int64(0)
    return {
        "labeler": labeler,
        "optimizer": lambda model: torch.optim.AdamW(
            [{"params": list(model.parameters()), "lr": np.float64(0.01)}], weight_decay=np.float32(0.5)
        ),
        "scheduler": None,
        "rotation_head": None,
        "clip_norm": np.float64(1),
        "callbacks": [Stateful([np.float32(0.5), {np.int64(2): np.arange(3)}, (np.bool_(1),)])],
    }


def test_states_may_hold_numpy_numbers_and_arrays(tmp_path):
    train(Checkpoint(tmp_path), max_steps=6, **numpy_parts())
    callback = Stateful(None)
    resumed = train(Checkpoint(tmp_path, resume=True), **(numpy_parts() | {"callbacks": [callback]}))
    assert_same(resumed, train(**numpy_parts()))
    assert str(callback.value) == "[0.5, {2: tensor([0, 1, 2])}, (True,)]"


@pytest.mark.parametrize("value", [datetime(2020, 1, 1, tzinfo=UTC), lambda: None, {1: [object()]}])
@pytest.mark.parametrize("resume", [False, True])
def test_rejects_a_state_that_cannot_be_loaded_when_it_is_first_saved(value, resume, tmp_path):
    if resume:
        train(Stateful(1), Checkpoint(tmp_path), max_steps=4)
    callback, steps = Stateful(value), saved_steps(tmp_path) if resume else []
    callback.load_state_dict = lambda _state: None
    with pytest.raises(TypeError, match=r"got state\['callbacks'\]\[0\]\['value'\].* of type .*\. Convert it in the"):
        train(callback, Checkpoint(tmp_path, every=1, resume=resume))
    assert saved_steps(tmp_path) == steps


def loss(**settings):
    return UDMLSSLoss(losses.MultiSimilarityLoss(**settings))


DIFFERENCES = {
    "seed": ({"seed": 3}, "seed 0 instead of 3"),
    "loss": ({"criterion": loss()}, "criterion.metric_loss ContrastiveLoss instead of MultiSimilarityLoss"),
    "loss setting": (
        {"criterion": UDMLSSLoss(losses.ContrastiveLoss(neg_margin=0.5))},
        "criterion.metric_loss.neg_margin 1 instead of 0.5",
    ),
    "miner": (
        {"criterion": UDMLSSLoss(losses.ContrastiveLoss(), miner=miners.MultiSimilarityMiner())},
        "criterion.miner none instead of MultiSimilarityMiner",
    ),
    "rotation weight": (
        {"criterion": UDMLSSLoss(losses.ContrastiveLoss(), rotation_weight=1)},
        "criterion.rotation_weight 0.1 instead of 1.0",
    ),
    "batches per step": ({"accumulate_grad_batches": 2}, "accumulate_grad_batches 1 instead of 2"),
    "clusters": ({"labeler": ClusterPseudoLabeler(7)}, "labeler.n_clusters 6 instead of 7"),
    "labeler setting": (
        {"labeler": ClusterPseudoLabeler(6, average_neighbors=2)},
        "labeler.average_neighbors none instead of 2",
    ),
    "labeler": ({"labeler": KMeans(6)}, "labeler.clusterer none instead of KMeans"),
    "learning rate": ({"lr": 0.1}, r"optimizer\.new parts\.lr 3e-05 instead of 0\.1"),
    "optimizer": ({"optimizer": adam, "rotation_head": None}, r"optimizer\.0\.lr none instead of 0\.01|rotation_head"),
    "callback": ({"callbacks": [EarlyStopping("agreement")]}, "callbacks  instead of EarlyStopping"),
    "average": ({"callbacks": [WeightAverage(0.9)]}, r"callbacks  instead of WeightAverage\(0\.9\)"),
    "rotation head": ({"rotation_head": None}, "rotation_head RotationPretextHead instead of none"),
    "shape": ({"d": 7}, r"shape of model\.embedder\.weight \(8, 144\) instead of \(7, 144\)"),
    "images": ({"cluster_images": Noisy(shift=1.0).images}, r"images with mean 0\.\d+ instead of with mean 1\.\d+"),
    "number of images": (
        {"images": Noisy(N + 1), "cluster_images": Noisy(N + 1).images},
        "number of images 48 instead of 49",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(Checkpoint(folder), max_steps=4)
    return folder


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_checkpoint_of_another_run_is_refused_with_the_names_of_the_differences(name, folder):
    changes, difference = DIFFERENCES[name]
    with pytest.raises(ValueError, match=rf"A checkpoint must be of the same run, got .*{difference}.*Resume with"):
        train(Checkpoint(folder, resume=True), **changes)


def test_settings_of_equal_value_and_images_that_differ_by_rounding_are_the_same_run(tmp_path):
    images = Noisy().images
    train(Checkpoint(tmp_path), cluster_images=images, max_steps=4, clip_norm=1, lr=1)
    decoded_elsewhere = (images * 255).round() / 255
    train(Checkpoint(tmp_path, resume=True), cluster_images=decoded_elsewhere, clip_norm=1.0, lr=1.0)


def test_ctrl_c_while_saving_ends_training_with_a_result(tmp_path, monkeypatch):
    def save(*_arguments):
        error = RuntimeError("unexpected pos 64 vs 0")  # of torch, which then cannot complete the file
        error.__context__ = KeyboardInterrupt()
        raise error

    monkeypatch.setattr(torch, "save", save)
    assert train(Checkpoint(tmp_path))["figures"][:2] == ("interrupt", 4)
    assert saved_steps(tmp_path) == []
