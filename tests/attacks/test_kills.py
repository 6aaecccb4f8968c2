"""Trainings that are killed, terminated or run out of disk space."""

import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from contextlib import nullcontext

import pytest
from injection import Moments
from interrupted_training import STEPS, adam, assert_same, train

from udmlss import BestWeights, Checkpoint, WeightAverage

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, with threads
SAVING = "callbacks/checkpoint_file.py"
FORK = multiprocessing.get_context("fork")
VARIATIONS = {
    "plain": {},
    "scheduler": {"rotation_head": None, "optimizer": adam, "scheduler": None},
    "averages": {"callbacks": lambda _: [WeightAverage(0.5), BestWeights()]},
    "workers": {"num_workers": 2},
}


class Counted(Checkpoint):
    """Checkpoints that store the number of the last step whose saving has ended, from 0 once training starts."""

    def __init__(self, folder, saved):
        super().__init__(folder, every=1, resume=True)
        self.saved = saved

    def on_start(self, run):
        super().on_start(run)
        self.saved.value, self.start = 0, time.monotonic()

    def on_step(self, report):
        super().on_step(report)
        self.saved.value = report.step


def completed(folder):
    """Return the steps of the checkpoints that match their checksums, in ascending order."""
    return sorted(
        int(path.stem.removeprefix("step-"))
        for path in folder.glob("*.pt")
        if (checksum := path.with_name(f"{path.name}.sha256")).exists()
        and checksum.read_text().split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    )


def end_a_run(folder, number, moment, changes):
    """Train in a process that receives a signal; return its exit code and the last saved step.

    Args:
        folder: Folder of the checkpoints.
        number: The signal.
        moment: A number of seconds after the start of training, or of a moment of saving as an integer.
        changes: Changed arguments of `train`.
    """
    saved, while_saving = FORK.RawValue("i", -1), isinstance(moment, int)

    def run():
        at = Moments(SAVING, number=moment, action=lambda: os.kill(os.getpid(), number))
        with at if while_saving else nullcontext():
            train(Counted(folder, saved), **changes)

    process = FORK.Process(target=run)
    process.start()
    if not while_saving:
        while saved.value < 0 and process.is_alive():
            time.sleep(0.001)
        time.sleep(moment)
        if process.is_alive():
            os.kill(process.pid, number)
    process.join(60)
    return process.exitcode, saved.value


def resumed(folder, copy, **changes):
    """Return the outcome of the run that is resumed from a copy of the folder."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return train(Checkpoint(copy, resume=True), **changes)


def attack_runs(attack, tmp_path, number, changes, n_signals):
    """Return the exit codes of runs that receive a signal, each of which continues the one before it until it ends."""
    generator, folder, codes = random.Random(number), tmp_path / "run", []  # noqa: S311 (no secrets)
    expected, whole = train(**changes), Counted(folder, FORK.RawValue("i", -1))
    with Moments(SAVING) as saving:
        assert_same(train(whole, **changes), expected)
    shutil.rmtree(folder)
    seconds, moments = time.monotonic() - whole.start, saving.sample(n_signals, number)
    while len(codes) < n_signals:
        folder.mkdir(exist_ok=True)
        before = completed(folder)
        moment = generator.choice([generator.uniform(0, seconds / 2), generator.choice(moments)])
        code, step = end_a_run(folder, number, moment, changes)
        if code == 0:  # the run ended before the signal
            shutil.rmtree(folder)
            continue
        codes.append(code)
        with attack.attempt(f"run {len(codes)}, {before} before, step {step} saved"):
            after = completed(folder)
            assert max(after, default=0) >= max([*before, step])
            assert len(after) >= min(len(before), 2)
            assert code != 128 + signal.SIGTERM or len(list(folder.iterdir())) == 1 + 2 * len(after)
            assert_same(resumed(folder, tmp_path / "copy", **changes), expected)
    return codes


@pytest.mark.slow(attack="kills")
@pytest.mark.parametrize("name", VARIATIONS)
def test_killed_runs_lose_no_checkpoint_and_resume_bit_for_bit(attack, tmp_path, name):
    codes = attack_runs(attack, tmp_path, signal.SIGKILL, VARIATIONS[name], 30)
    assert set(codes) == {-signal.SIGKILL}


@pytest.mark.slow(attack="sigterm")
@pytest.mark.parametrize("name", VARIATIONS)
def test_terminated_runs_save_their_step_and_resume_bit_for_bit(attack, tmp_path, name):
    codes = attack_runs(attack, tmp_path, signal.SIGTERM, VARIATIONS[name], 15)
    assert 128 + signal.SIGTERM in codes
    assert set(codes) <= {128 + signal.SIGTERM, -signal.SIGTERM}  # the latter before training


@pytest.mark.slow(attack="disk")
def test_a_full_disk_is_an_error_that_leaves_earlier_checkpoints(attack, tmp_path):
    expected, generator = train(), random.Random(0)  # noqa: S311
    for number in range(100):
        folder, step, size = tmp_path / str(number), generator.randint(1, STEPS), generator.randrange(75_000)

        def limit(report, step=step, size=size):
            if report.step == step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        limit_size = type("LimitSize", (), {"on_step": staticmethod(limit)})()
        with attack.attempt(f"step {step}, {size} bytes"):
            try:
                with pytest.raises(OSError, match=f"step-{step:09d}.pt could not be written; earlier"):
                    train(limit_size, Checkpoint(folder, every=1))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert completed(folder) == list(range(max(1, step - 2), step))
            assert len(list(folder.iterdir())) == 1 + 2 * len(completed(folder))
            assert_same(train(Checkpoint(folder, resume=True)), expected)
