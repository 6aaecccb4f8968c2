"""`fit` in several processes, this file being their program; what they return is judged in one process."""

import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from udmlss import ClusterPseudoLabeler, EmbeddingModel, RotationPretextHead, UDMLSSLoss, fit
from udmlss.distributed import process_group, rank, run_on_rank_zero, world_size
from udmlss.distributed.ddp import shared
from udmlss.inference import InferenceOptions
from udmlss.losses import SelfSupervisedRanking
from udmlss.training.state import Parts
from udmlss.training.step import Losses, Step

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import processes

pytestmark = pytest.mark.xdist_group("ranks")  # so that the processes start once

N, STEPS = 49, 7


class Noisy(torch.utils.data.Dataset):
    """Images with noise drawn anew each time; one item fails on one rank, from its second time on, if asked to."""

    def __init__(self, failing=None):
        self.images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        self.failing, self.left = failing, 12

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.left -= self.failing == rank()
        if self.left < 0:
            raise OSError("image 7 cannot be read")
        return self.images[index] + 0.2 * torch.randn(1, 8, 8)


def build(loss=None):
    """Return a model and the other arguments of `fit`; each rank's weights are its own at first."""
    torch.manual_seed(rank())
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
    model = EmbeddingModel(trunk, nn.Linear(144, 8))
    return model, {
        "labeler": ClusterPseudoLabeler(6),
        "criterion": UDMLSSLoss(losses.ProxyAnchorLoss(6, 8) if loss is None else loss, rotation_weight=0.1),
        "rotation_head": RotationPretextHead(144, 16),
        "auxiliary": SelfSupervisedRanking(144),
        "clusters_per_batch": 3,
        "samples_per_cluster": 3,
        "rotation_images": 4,
        "max_steps": STEPS,
        "relabel_every": 3,
        "cluster_images": Noisy().images,
        "freeze_batch_norm": False,
        "ema_decay": 0.5,
        "keep": "best",
    }


def outcome(model, arguments, result):
    modules = [model, *(arguments[name] for name in ("criterion", "rotation_head", "auxiliary"))]
    return {
        "weights": [value.clone() for module in modules for value in module.parameters()],
        "model": [value.clone() for value in model.state_dict().values()],
        "history": [replace(report, seconds=0.0) for report in result.history],
        "labels": result.pseudo_labels.labels,
        "kept": result.kept_step,
    }


def trained(**changes):
    model, arguments = build()
    return outcome(model, arguments, fit(model, Noisy(), **(arguments | changes)))


class FirstStepOnly(nn.Module):
    """A metric loss whose parameter takes part in the first step alone, as those of a miner that finds nothing do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, embeddings, labels):
        self.calls += 1
        loss = losses.MultiSimilarityLoss(2, 40, 0.5)(embeddings, labels)
        return self.scale * loss if self.calls == 1 else loss


def trained_by_a_loss_that_skips():
    model, arguments = build(FirstStepOnly())
    return outcome(model, arguments, fit(model, Noisy(), **arguments, progress=False))


def gradients():
    """Return the gradients of one step, on this rank's share of a batch."""
    images, labels = joint_batch()
    size = len(images) // world_size()
    mine = slice(rank() * size, (rank() + 1) * size)
    return gradients_of(images[mine], labels[mine])


def joint_batch():
    draws = torch.Generator().manual_seed(9)
    return torch.rand(12, 1, 8, 8, generator=draws, dtype=torch.float32), torch.arange(12) % 4


def gradients_of(images, labels):
    torch.manual_seed(0)
    model = EmbeddingModel(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), nn.Linear(144, 8))
    metric = losses.MultipleLosses([losses.MultiSimilarityLoss(2, 40, 0.5), losses.ProxyAnchorLoss(4, 8)])
    criterion, head = UDMLSSLoss(metric, rotation_weight=0.5), RotationPretextHead(144, 16)
    learning = [p for module in (model, criterion, head) for p in module.parameters()]
    optimizer = torch.optim.SGD(learning, lr=0.0)
    losses_ = Losses(model, criterion, rotation_head=head, auxiliary=None, upright_once=True, precision="float32")
    synchronized = shared(losses_)
    parts = Parts(model, criterion, head, None, optimizer, None, None)
    step = Step(
        parts,
        synchronized,
        InferenceOptions(num_workers=0, precision="float32", channels_last=False),
        rotation_images=len(images),
        clip_norm=None,
    )
    report, _ = step(images, labels)
    return [p.grad.clone() for p in learning], report


def fail():
    raise OSError("no space left")


def main(folder, task):
    with process_group(timeout=timedelta(seconds=120)) as device:
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        if task == "find":
            called = []
            found = {
                "gradients": gradients(),
                "trained": trained(callbacks=[called.append]),
                "called": len(called),
                "saved": trained(checkpoint=folder / "run", checkpoint_every=2, max_steps=5, progress=False),
                "resumed": trained(checkpoint=folder / "run", resume=True, progress=False),
                "skipping": trained_by_a_loss_that_skips(),
                "remembered": trained(later_rounds="remembered", keep="last", progress=False),
                "on a disk": trained(embeddings_folder=folder, first_round="embeddings", later_rounds="features"),
                "held": trained(first_round="embeddings", later_rounds="features"),
                "first alone": run_on_rank_zero(lambda: sorted(path.name for path in (folder / "run").iterdir())),
            }
            torch.save(found, folder / f"{rank()}.pt")
        if task == "fail":
            model, arguments = build()
            fit(model, Noisy(failing=1), **arguments, progress=False)
        if task == "full":
            allocate_rows = storing.allocate_rows
            embedding.allocate_rows = lambda n, *others: fail() if n == N else allocate_rows(n, *others)
            model, arguments = build()
            fit(model, Noisy(), **arguments, embeddings_folder=folder, progress=False)
        if task == "asked":
            model, arguments = build()
            fit(model, Noisy(), **(arguments | {"max_steps": 10**6}), checkpoint=folder / "run", progress=False)


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def ranks(request, tmp_path_factory):
    """What each rank found and what it printed."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = processes.finish(processes.start(__file__, request.param, folder, "find"))
    assert [code for code, _ in ended] == [0] * request.param, ended
    found = [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(request.param)]
    return [one | {"printed": text} for one, (_, text) in zip(found, ended, strict=True)]


@pytest.mark.parametrize("how", ["trained", "remembered", "skipping"])
def test_all_ranks_have_the_same_labels_history_and_weights(ranks, how):
    first = ranks[0][how]
    assert len(first["labels"]) == N
    assert [report.step for report in first["history"]] == [3, 6, 7]
    for other in ranks[1:]:
        assert torch.equal(other[how]["labels"], first["labels"])
        assert other[how]["history"] == first["history"]
        assert other[how]["kept"] == first["kept"]
        for name in ("weights", "model"):
            torch.testing.assert_close(other[how][name], first[name], rtol=0, atol=0)


def test_gradients_of_a_step_are_those_of_one_process_with_all_images(ranks):
    expected, report = gradients_of(*joint_batch())
    assert all(gradient.any() for gradient in expected)
    for one in ranks:
        found, found_report = one["gradients"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found_report.loss == pytest.approx(report.loss, rel=1e-5)
        assert found_report.rotation_loss == pytest.approx(report.rotation_loss, rel=1e-5)


def test_an_interrupted_run_goes_on_bit_for_bit_on_as_many_ranks(ranks):
    for one in ranks:
        expected, found = one["trained"], one["resumed"]
        assert one["saved"]["history"][0] == expected["history"][0]
        assert found["history"] == expected["history"]
        assert torch.equal(found["labels"], expected["labels"])
        torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=0)


def test_there_is_one_progress_bar_one_set_of_files_and_one_call_of_callbacks(ranks):
    for one, others in [(ranks[0], ranks[1:])]:
        assert "7/7" in one["printed"]
        assert one["called"] == 3
        for other in others:
            assert "fit" not in other["printed"]
            assert other["called"] == 0
    assert ranks[0]["first alone"] == ["step-000000006.pt", "step-000000007.pt"]


def test_if_a_rank_fails_the_others_end_with_its_error(tmp_path):
    ended = processes.finish(processes.start(__file__, 3, tmp_path, "fail"))
    assert all(code == 1 for code, _ in ended)
    assert "OSError: image 7 cannot be read" in ended[1][1]
    assert "while taking item" in ended[1][1]
    assert "`fit` had done 0 steps in 0 whole rounds" in ended[1][1]
    for other in (0, 2):
        assert "RuntimeError: rank 1 failed with OSError: image 7 cannot be read" in ended[other][1]


def test_embeddings_on_a_disk_give_the_same_run(ranks):
    for one in ranks:
        expected, found = one["held"], one["on a disk"]
        assert found["history"] == expected["history"]
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=0)


def test_if_the_disk_is_full_for_the_first_rank_all_end(tmp_path):
    ended = processes.finish(processes.start(__file__, 2, tmp_path, "full"))
    assert [code for code, _ in ended] == [1, 1], ended
    assert "OSError: no space left" in ended[0][1]
    assert "RuntimeError: rank 0 failed with OSError: no space left" in ended[1][1]


def test_a_sigterm_to_one_rank_saves_and_ends_all(tmp_path):
    started = processes.start(__file__, 2, tmp_path, "asked")

    def ask():
        wait_for(lambda: list((tmp_path / "run").glob("*.pt")))
        started[1].terminate()

    ended = processes.finish(started, ask)
    assert [code for code, _ in ended] == [143, 143], ended
    assert "fit: asked to end, saved" in ended[0][1]


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
