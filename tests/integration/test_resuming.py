"""An interrupted and resumed run equals the uninterrupted run bit for bit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import interrupted_training
import numpy as np
import pytest
import torch
from interrupted_training import STEPS, ChangingClusters, Terminating, adam, assert_same, train
from pytorch_metric_learning import losses

from udmlss import BestWeights, Checkpoint, ClusterPseudoLabeler, EarlyStopping, UDMLSSLoss, WeightAverage
from udmlss.losses import ClusterMemoryLoss, SelfSupervisedRanking, SynthesisRankingLoss, deep_metric


class InterruptionError(Exception):
    """Ends a run early."""


class Interrupt:
    """Raises an error in the n-th step, before a checkpoint of that step is saved."""

    def __init__(self, n_steps):
        self.n_steps = n_steps

    def on_step(self, _report):
        self.n_steps -= 1
        if self.n_steps == 0:
            raise InterruptionError


class Noisy(losses.ContrastiveLoss):
    """A loss with noise from NumPy's global generator. The type checker of the tests samples from Python's."""

    def forward(self, *arguments):
        return super().forward(*arguments) * (2 + 0.1 * np.random.randn())  # noqa: NPY002


VARIATIONS = {
    "plain": {},
    "scheduler and clipping": {"rotation_head": None, "optimizer": adam, "scheduler": None, "clip_norm": 0.5},
    "steps of three batches": {"accumulate_grad_batches": 3, "callbacks": lambda _: [WeightAverage(0.9)]},
    "proxies": {"criterion": lambda _: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8))},
    "changing number of clusters": {
        "labeler": lambda _: ChangingClusters(6, 9, 5),
        "criterion": lambda _: UDMLSSLoss(
            losses.MultipleLosses([ClusterMemoryLoss(8), losses.SoftTripleLoss(6, 8), losses.ProxyNCALoss(6, 8)])
        ),
        "callbacks": lambda _: [BestWeights()],
    },
    "unreliable labels": {
        "labeler": lambda _: ClusterPseudoLabeler(12, unassigned_fraction=0.1, coarse=True),
        "clusters_per_batch": None,
    },
    "memory": {"criterion": lambda _: UDMLSSLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 32))},
    "sampling loss with cluster centers": {
        "criterion": lambda _: UDMLSSLoss(
            losses.MultipleLosses([losses.ContrastiveLoss(), SynthesisRankingLoss(8, anchor_weight=0)])
        )
    },
    "sampling miner": {"criterion": lambda _: UDMLSSLoss(deep_metric.distance_weighted_margin())},
    "global generator of NumPy": {"criterion": lambda _: UDMLSSLoss(Noisy())},
    "auxiliary": {"auxiliary": lambda _: SelfSupervisedRanking(144)},
    "average": {"callbacks": lambda _: [WeightAverage(0.9)]},
    "best weights": {"callbacks": lambda _: [BestWeights(), EarlyStopping(patience=4)]},
    "best average": {"callbacks": lambda _: [WeightAverage(0.5), BestWeights()]},
    "two views": {"views": 2, "samples_per_cluster": 2},
    "features": {"cluster_on": "features"},
    "augmented clustering": {"cluster_images": None},
    "settled": {"callbacks": lambda _: [EarlyStopping("agreement", threshold=0.001, patience=2)]},
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_resumes_bit_for_bit_after_interruptions_within_and_between_rounds(name, tmp_path):
    changes = VARIATIONS[name]
    expected = train(**changes)
    for before, saved in pairwise([0, 1, 4, 6]):  # 4 is the last step of the first round
        torch.manual_seed(saved)  # the random state of the program must not matter
        with pytest.raises(InterruptionError):
            train(Interrupt(saved - before + 1), Checkpoint(tmp_path, every=1, resume=True), **changes)
    assert_same(train(Checkpoint(tmp_path, every=1, resume=True), **changes), expected)


def test_a_criterion_with_the_clusters_of_an_earlier_run_may_resume(tmp_path):
    used = UDMLSSLoss(losses.MultipleLosses([ClusterMemoryLoss(8), losses.ProxyAnchorLoss(2, 8)]))
    first = train(Checkpoint(tmp_path), criterion=used, max_steps=6)
    resumed = train(Checkpoint(tmp_path, resume=True), criterion=used)
    assert resumed["history"][0] == first["history"][0]
    assert resumed["history"][-1].step == STEPS


@pytest.mark.parametrize(("before", "after"), [(0, 2), (1, 0)])
def test_the_number_of_workers_may_change(before, after, tmp_path):
    train(Checkpoint(tmp_path), max_steps=6, num_workers=before)
    assert_same(train(Checkpoint(tmp_path, resume=True), num_workers=after), train())


def test_a_completed_run_returns_the_same_result_without_a_step(tmp_path):
    expected = train(Checkpoint(tmp_path))
    assert_same(train(Interrupt(1), Checkpoint(tmp_path, resume=True)), expected)


def test_resuming_without_a_checkpoint_starts_from_scratch(tmp_path):
    assert_same(train(Checkpoint(tmp_path / "new" / "run", resume=True)), train())


@pytest.mark.parametrize("callbacks", [[], [WeightAverage(0.9)], [BestWeights()]])
def test_max_steps_may_be_raised_and_lowered(callbacks, tmp_path):
    whole = train(callbacks=callbacks)
    train(Checkpoint(tmp_path), callbacks=callbacks, max_steps=6)
    assert_same(train(Checkpoint(tmp_path, every=1, resume=True), callbacks=callbacks), whole)
    lowered = train(Checkpoint(tmp_path, resume=True), callbacks=callbacks, max_steps=9)
    torch.testing.assert_close(lowered["weights"], whole["weights"], rtol=0, atol=0)
    assert lowered["figures"] == whole["figures"]  # which has the step of the weights


def test_a_callback_that_ends_training_leaves_a_checkpoint_of_its_step(tmp_path):
    class TimeLimit:
        def on_step(self, report):
            return report.step == 6

    stopped = train(TimeLimit(), Checkpoint(tmp_path, every=99))
    assert stopped["figures"][:2] == ("callback", 6)
    assert_same(train(Checkpoint(tmp_path, resume=True)), train())


def send_sigterm(_report):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("every", [None, 99])
def test_sigterm_saves_and_ends_the_process_at_any_time(every, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    interruptions = [
        {"images": Terminating(20)},  # in an early batch
        {"callbacks": [send_sigterm]},  # at the end of a round
        {"images": Terminating(40)},  # while scoring
        {"images": Terminating(60)},  # in a later batch
    ]
    for changes in interruptions:
        with pytest.raises(SystemExit) as ended:
            train(Checkpoint(tmp_path, every=every, resume=True), **changes, label_free=True)
        assert ended.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler
    assert capsys.readouterr().err.count("fit: received SIGTERM, saved step") == 4
    assert_same(train(Checkpoint(tmp_path, every=every, resume=True), label_free=True), train(label_free=True))


class TerminateWhileSaving:
    """Requests the end of training and sends SIGTERM while the state after a step is saved."""

    def __init__(self, step):
        self.step, self.run = step, None

    def on_start(self, run):
        self.run = run

    def state_dict(self):
        if self.run.step == self.step:
            self.run.request_stop("time limit")
            send_sigterm(None)
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("step", [4, STEPS])
def test_sigterm_while_a_checkpoint_is_written_ends_the_process(step, tmp_path):
    with pytest.raises(SystemExit) as ended:
        train(TerminateWhileSaving(step), Checkpoint(tmp_path, every=4))
    assert ended.value.code == 128 + signal.SIGTERM
    assert_same(train(TerminateWhileSaving(None), Checkpoint(tmp_path, resume=True)), train())


class TerminateJob:
    """Sends SIGTERM to this process and its workers, as schedulers do."""

    def on_step(self, _report):
        for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
            os.kill(process.pid, signal.SIGTERM)


def test_sigterm_to_a_process_and_its_workers_saves(tmp_path):
    with pytest.raises(SystemExit):
        train(TerminateJob(), Checkpoint(tmp_path), num_workers=2)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["step-000000001.pt"]


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[1])
from interrupted_training import train
from udmlss import Checkpoint
train(Checkpoint(sys.argv[2], every=1), num_workers=2, max_steps=10**6)
"""


def test_a_folder_is_refused_while_a_process_uses_it_and_free_once_it_is_killed(tmp_path):
    support = Path(interrupted_training.__file__).parent
    command, threads = [sys.executable, "-c", ENDLESS, support, tmp_path], {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=os.environ | threads)  # noqa: S603 (a program of this file)
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.pt"))) == 2)
        rule = r"A folder must belong to one run at a time, got .*, which another process uses\. Wait"
        with pytest.raises(ValueError, match=rule):
            train(Checkpoint(tmp_path, resume=True))
        assert process.poll() is None
    finally:
        process.kill()  # its workers live a few seconds longer
        process.wait()
    [_, newest] = sorted(tmp_path.glob("*.pt"))
    changes = {"max_steps": int(newest.stem.removeprefix("step-")) + 3}
    assert_same(train(Checkpoint(tmp_path, resume=True), **changes), train(**changes))


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
