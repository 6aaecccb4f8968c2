"""An interrupted and resumed run is the uninterrupted one, bit for bit."""

import multiprocessing
import os
import signal
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from udmlss import ClusterPseudoLabeler, EmbeddingModel, RotationPretextHead, StopWhenSettled, UDMLSSLoss, fit
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss

N, STEPS, EVERY = 48, 11, 4


class Noisy(torch.utils.data.Dataset):
    """Images with noise drawn anew each time they are taken."""

    def __init__(self, n=N, shift=0.0):
        self.images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)) + shift

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.2 * torch.randn(1, 8, 8)


def build(**changes):
    """Return fresh arguments for `fit`, each part built from the same random numbers."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
    model = EmbeddingModel(trunk, nn.Linear(144, 8))
    arguments = {
        "labeler": ClusterPseudoLabeler(6),
        "criterion": UDMLSSLoss(losses.ContrastiveLoss(), rotation_weight=0.1),
        "rotation_head": RotationPretextHead(144, 16),
        "clusters_per_batch": 3,
        "samples_per_cluster": 3,
        "rotation_images": 4,
        "max_steps": STEPS,
        "relabel_every": EVERY,
        "cluster_images": Noisy().images,
        "freeze_batch_norm": False,
        "progress": False,
    }
    for name, change in changes.items():
        arguments[name] = change(model) if callable(change) else change
    if "scheduler" in arguments:
        arguments["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(arguments["optimizer"], STEPS)
    return model, arguments


class BrokeOffError(Exception):
    """What ends a run before its time."""


def break_off(criterion, after):
    """Let the criterion fail once it has been asked so many times."""
    terms, calls = criterion.terms, []

    def counted(*args):
        calls.append(args)
        if len(calls) > after:
            raise BrokeOffError
        return terms(*args)

    criterion.terms = counted


def outcome(model, arguments, result):
    modules = [model, arguments["criterion"], arguments.get("rotation_head"), arguments.get("auxiliary")]
    tensors = [value for module in modules if module is not None for value in module.state_dict().values()]
    history = [replace(report, seconds=0.0) for report in result.history]
    return tensors, history, result.pseudo_labels.labels, (result.ended, result.kept_step, result.start)


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert one[1] == other[1]
    assert torch.equal(one[2], other[2])
    assert one[3] == other[3]


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


VARIATIONS = {
    "plain": {},
    "scheduler and clipping": {
        "rotation_head": None,
        "optimizer": adam,
        "scheduler": None,
        "clip_norm": 0.5,
    },
    "proxies": {"criterion": lambda _: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8))},
    "memory": {"criterion": lambda _: UDMLSSLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 32))},
    "loss that draws and follows centroids": {
        "criterion": lambda _: UDMLSSLoss(
            losses.MultipleLosses([losses.ContrastiveLoss(), SynthesisRankingLoss(8, anchor_weight=0)])
        )
    },
    "auxiliary": {"auxiliary": lambda _: SelfSupervisedRanking(144)},
    "average": {"ema_decay": 0.9},
    "best of rounds": {"keep": "best", "patience": 4},
    "two views": {"views": 2, "samples_per_cluster": 2},
    "features": {"later_rounds": "features"},
    "remembered": {"later_rounds": "remembered"},
    "augmented clustering": {"cluster_images": None},
    "callback": {"callbacks": lambda _: [StopWhenSettled(0.001, patience=2)]},
}


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("name", VARIATIONS)
def test_a_run_that_broke_off_and_went_on_is_the_run_that_did_not(name, stop, tmp_path):
    model, arguments = build(**VARIATIONS[name])
    expected = outcome(model, arguments, fit(model, Noisy(), **arguments))

    model, arguments = build(**VARIATIONS[name])
    break_off(arguments["criterion"], stop)
    with pytest.raises(BrokeOffError):
        fit(model, Noisy(), **arguments, checkpoint=tmp_path / "run", checkpoint_every=1)

    torch.manual_seed(77)  # the state of the program that goes on does not matter
    model, arguments = build(**VARIATIONS[name])
    torch.manual_seed(78)
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path / "run", checkpoint_every=1, resume=True)
    assert_same(outcome(model, arguments, result), expected)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2)])
def test_the_number_of_workers_changes_nothing_and_may_change_on_the_way(before, after, tmp_path):
    model, arguments = build()
    expected = outcome(model, arguments, fit(model, Noisy(), **arguments))
    model, arguments = build(max_steps=6, num_workers=before)
    fit(model, Noisy(), **arguments, checkpoint=tmp_path)
    model, arguments = build(num_workers=after)
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path, resume=True)
    assert_same(outcome(model, arguments, result), expected)


def test_a_run_that_had_ended_returns_the_same_again(tmp_path):
    model, arguments = build()
    expected = outcome(model, arguments, fit(model, Noisy(), **arguments, checkpoint=tmp_path))
    model, arguments = build()
    break_off(arguments["criterion"], 0)
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path, resume=True)
    assert_same(outcome(model, arguments, result), expected)


def test_without_a_checkpoint_resuming_begins_at_the_beginning(tmp_path):
    model, arguments = build()
    expected = outcome(model, arguments, fit(model, Noisy(), **arguments))
    model, arguments = build()
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path / "new" / "run", resume=True)
    assert_same(outcome(model, arguments, result), expected)


def saved(folder):
    return sorted(path.name for path in folder.iterdir())


def test_checkpoints_come_as_often_as_asked_and_at_the_end_and_the_newest_stay(tmp_path):
    model, arguments = build()
    fit(model, Noisy(), **arguments, checkpoint=str(tmp_path), checkpoint_every=3, checkpoints_kept=3)
    assert saved(tmp_path) == [f"step-{step:09d}.pt" for step in (6, 9, 11)]


def test_by_default_a_checkpoint_is_saved_each_round(tmp_path):
    model, arguments = build()
    fit(model, Noisy(), **arguments, checkpoint=tmp_path, checkpoints_kept=9)
    assert saved(tmp_path) == [f"step-{step:09d}.pt" for step in (4, 8, 11)]


def test_a_run_that_goes_on_says_from_where_and_one_that_begins_says_nothing(tmp_path, capsys):
    save_one(tmp_path, progress=True)
    assert "goes on" not in capsys.readouterr().err
    resume(tmp_path, progress=True)
    assert f"fit: goes on from {tmp_path / 'step-000000005.pt'}" in capsys.readouterr().err
    resume(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_checkpoint_needs_no_code_to_be_read(tmp_path):
    model, arguments = build(scheduler=None, optimizer=adam, rotation_head=None, ema_decay=0.5, keep="best")
    fit(model, Noisy(), **arguments, checkpoint=tmp_path)
    found = torch.load(next(tmp_path.iterdir()), weights_only=True)
    assert found["format"] == 2
    assert set(found["modules"]) == {"model", "criterion"}


def save_one(folder, **changes):
    model, arguments = build(max_steps=5, **changes)
    fit(model, Noisy(), **arguments, checkpoint=folder)


def resume(folder, images=None, **changes):
    model, arguments = build(**changes)
    images = Noisy() if images is None else images
    return fit(model, images, **arguments, checkpoint=folder, resume=True)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 3}, "seed 0 and not 3"),
        ({"callbacks": [StopWhenSettled()]}, "callbacks ClusterPseudoLabeler and not ClusterPseudoLabeler, StopWhenS"),
        ({"ema_decay": 0.9}, "ema_decay None and not 0.9"),
        ({"rotation_head": None}, "shape .* and not none"),
        (
            {"optimizer": lambda model: torch.optim.SGD(model.parameters()), "rotation_head": None},
            "optimizer AdamW and",
        ),
        (
            {"rotation_head": lambda _: RotationPretextHead(144, 7)},
            r"rotation_head\.\S+ shape \(16, 144\) and not shape",
        ),
        ({"cluster_images": Noisy(shift=1.0).images}, "content of the images [0-9a-f]+ and not [0-9a-f]+"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(changes, difference, tmp_path):
    save_one(tmp_path)
    with pytest.raises(ValueError, match=f"A checkpoint must be of the same run, got .*{difference}"):
        resume(tmp_path, **changes)


def test_a_checkpoint_of_a_data_set_of_another_length_is_refused(tmp_path):
    save_one(tmp_path)
    more = Noisy(N + 1)
    with pytest.raises(ValueError, match=r"number of images 48 and not 49.* Go on with the same parts and settings"):
        resume(tmp_path, more, cluster_images=more.images)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    save_one(tmp_path)
    for path in tmp_path.iterdir():
        torch.save(torch.load(path) | {"format": 99}, path)
    with pytest.raises(ValueError, match="A checkpoint must have format 2, got 99 in"):
        resume(tmp_path)


@pytest.mark.parametrize("left", [0, 1, 1000, -1])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(left, tmp_path):
    model, arguments = build()
    expected = outcome(model, arguments, fit(model, Noisy(), **arguments, checkpoint=tmp_path))
    *_, newest = sorted(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:left])
    model, arguments = build()
    with pytest.warns(UserWarning, match=f"{newest.name} cannot be read and is passed over"):
        result = fit(model, Noisy(), **arguments, checkpoint=tmp_path, resume=True)
    assert_same(outcome(model, arguments, result), expected)


def test_where_no_checkpoint_can_be_read_nothing_is_begun(tmp_path):
    (tmp_path / "step-000000004.pt").write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="One checkpoint at least must be readable, got none of 1 in"):
            resume(tmp_path)


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path):
    save_one(tmp_path)
    found = saved(tmp_path)
    with pytest.raises(
        ValueError, match=r"a folder without checkpoints, got step-000000005.pt there\. Pass `resume=Tr"
    ):
        save_one(tmp_path)
    assert saved(tmp_path) == found


def test_what_a_kill_left_half_written_is_taken_away(tmp_path):
    save_one(tmp_path)
    (tmp_path / "step-000000009.part").write_bytes(b"half")
    resume(tmp_path)
    assert saved(tmp_path) == ["step-000000008.pt", "step-000000011.pt"]


def test_resuming_needs_a_folder():
    with pytest.raises(ValueError, match=r"`resume=True` needs a folder of checkpoints, got `checkpoint=None`"):
        resume(None)


def test_a_full_disk_is_said_with_the_file_and_the_last_checkpoint_stays(tmp_path):
    model, arguments = build()
    arguments["callbacks"] = [lambda _report: (tmp_path / "step-000000008.part").symlink_to("/dev/full")]
    with pytest.raises(OSError, match=r"step-000000008\.pt could not be written; those before it are whole.*No space"):
        fit(model, Noisy(), **arguments, checkpoint=tmp_path)
    assert saved(tmp_path) == ["step-000000004.pt"]
    expected = build()
    model, arguments = build()
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path, resume=True)
    assert_same(outcome(model, arguments, result), outcome(*expected, fit(expected[0], Noisy(), **expected[1])))


class AskedToEnd(Noisy):
    """Sends this process a SIGTERM when the given number of items have been taken."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


@pytest.mark.parametrize("left", [20, 70, 80, 120, 140])
def test_sigterm_saves_and_ends_the_process_and_the_run_goes_on_from_there(left, tmp_path, capsys):
    model, arguments = build()
    expected = outcome(model, arguments, fit(model, Noisy(), **arguments))
    before = signal.getsignal(signal.SIGTERM)
    model, arguments = build()
    with pytest.raises(SystemExit) as ended:
        fit(model, AskedToEnd(left), **arguments, checkpoint=tmp_path, checkpoint_every=99)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert "fit: asked to end, saved" in capsys.readouterr().err
    [path] = tmp_path.iterdir()
    assert path.suffix == ".pt"
    model, arguments = build()
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path, resume=True)
    assert_same(outcome(model, arguments, result), expected)


def train_until_killed(folder):
    """Train and save after each step; in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    model, arguments = build(max_steps=40)
    fit(model, Noisy(), **arguments, checkpoint=folder, checkpoint_every=1, resume=True)


def test_no_kill_loses_or_breaks_a_checkpoint(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["udmlss", "pytorch_metric_learning.losses", "faiss"])
    draws, newest = np.random.default_rng(0), 0
    for _ in range(20):
        child = processes.Process(target=train_until_killed, args=(tmp_path,))
        child.start()
        while child.is_alive() and max(steps_saved(tmp_path), default=0) == newest < 40:
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.05))
        child.kill()
        child.join()
        for step in steps_saved(tmp_path):
            torch.load(tmp_path / f"step-{step:09d}.pt", weights_only=True)
        assert max(steps_saved(tmp_path)) >= newest
        newest = max(steps_saved(tmp_path))
    assert newest >= 20
    model, arguments = build(max_steps=40)
    result = fit(model, Noisy(), **arguments, checkpoint=tmp_path, resume=True)
    expected = build(max_steps=40)
    assert_same(outcome(model, arguments, result), outcome(*expected, fit(expected[0], Noisy(), **expected[1])))


def steps_saved(folder):
    return [int(path.stem.removeprefix("step-")) for path in folder.glob("*.pt")]
