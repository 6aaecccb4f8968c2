"""The program of the tests of `fit` on several ranks: three processes train as three ranks, then two of them as two."""

import io
import os
import signal
import sys
from contextlib import ExitStack, nullcontext, redirect_stderr
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import differing_ranks
import torch
from interrupted_training import ChangingClusters, Noisy, build
from pytorch_metric_learning import losses
from torch import distributed, nn

import udmlss.inference
from udmlss import (
    BestWeights,
    Checkpoint,
    ClusterPseudoLabeler,
    Epochs,
    Rounds,
    UDMLSSLoss,
    WeightAverage,
    embed,
    embedder_from_features,
    fit,
)
from udmlss.distributed import process_group, rank, world_size
from udmlss.losses import ClusterMemoryLoss, SelfSupervisedRanking
from udmlss.training.run import Run
from udmlss.training.step import TrainingStep

WORLD_SIZES = (3, 2)
N = 49  # is not divisible by the number of ranks


class FailingImages(Noisy):
    """Images that raise an error on rank 1 once some were loaded, after those that are checked before training."""

    def __init__(self, error):
        super().__init__(N)
        self.error, self.n_loads = error, 62

    def __getitem__(self, index):
        self.n_loads -= rank() == 1
        if self.n_loads < 0:
            raise self.error
        return super().__getitem__(index)


class FailingRanking(SelfSupervisedRanking):
    """An auxiliary loss that raises an error on rank 1 in the third step."""

    def forward(self, model, images):
        self.calls = getattr(self, "calls", 0) + 1
        if rank() == 1 and self.calls == 3:
            raise ValueError("crops are too small")
        return super().forward(model, images)


class FirstStepOnly(nn.Module):
    """A metric loss whose parameter is used in the first step only, as by a miner that finds nothing later."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, embeddings, labels):
        self.calls += 1
        loss = losses.MultiSimilarityLoss(2, 40, 0.5)(embeddings, labels)
        return self.scale * loss if self.calls == 1 else loss


def with_unused_parameters(model):
    """Give a model parameters that are used in no step, and return a loss with one that is used in the first only."""
    model.embedder.unused = nn.Linear(2, 2)
    for parameter in model.embedder.unused.parameters():
        nn.init.ones_(parameter)
    return UDMLSSLoss(FirstStepOnly())


class OnRankOne:
    """A callback that calls a function in the fifth step, on rank 1 only."""

    def __init__(self, function):
        self.function = function

    def on_step(self, report):
        return self.function() if rank() == 1 and report.step == 5 else None


class EndsRound:
    """A callback that ends training after the second round, on rank 1 only."""

    def on_round(self, report):
        return rank() == 1 and report.round == 1


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def raise_full_disk(*_arguments):
    raise OSError("no space left")


def train(*callbacks, images=None, **changes):
    """Train from weights that differ between the ranks, and return the outcome."""
    defaults = {
        "criterion": lambda _: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8), rotation_weight=0.1),
        "auxiliary": lambda _: SelfSupervisedRanking(144),
        "cluster_images": Noisy(N).images,
        "max_steps": 7,
        "relabel_every": 3,
    }
    model, arguments = build(**(defaults | changes))
    with torch.no_grad():
        model.embedder.weight += rank()
    result = fit(model, Noisy(N) if images is None else images, **arguments, callbacks=callbacks)
    modules = [model, arguments["criterion"], arguments["rotation_head"], arguments["auxiliary"]]
    weights = [value for module in modules if module is not None for value in module.parameters()]
    features = embed(model, Noisy(N).images, output="features")
    return {
        "weights": [value.clone() for value in [*weights, *arguments["criterion"].buffers()]],
        "model": [value.clone() for value in model.state_dict().values()],
        "embedders": [each.weight.detach().clone() for each in (model.embedder, embedder_from_features(features, 8))],
        "history": [replace(report, seconds=0.0) for report in result.history],
        "labels": result.pseudo_labels.labels,
        "end": (result.stop_reason, result.weights_step),
    }


def resume(*callbacks):
    """Resume a training on ranks other than 0 whose folders hold no checkpoints that can be read."""
    read = "udmlss.training.callbacks.checkpoint.read_checkpoint"
    with patch(read, side_effect=OSError("no such file")) if rank() else nullcontext():
        return train(*callbacks)


def start_features():
    return embed(build()[0], Noisy(N).images, output="features", sharded=True)


def error_of(*callbacks, **changes):
    """Return the error that ends a training."""
    try:
        train(*callbacks, **changes)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the tests look at it)
        return type(error), str(error), getattr(error, "__notes__", [])
    return None


def joint_batch():
    generator = torch.Generator().manual_seed(9)
    return torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 4


def pairs_and_proxies(_model):
    metric = losses.MultipleLosses([losses.MultiSimilarityLoss(2, 40, 0.5), losses.ProxyAnchorLoss(4, 8)])
    return UDMLSSLoss(metric, rotation_weight=0.5)


def memory_and_proxies(_model):
    return UDMLSSLoss(losses.MultipleLosses([ClusterMemoryLoss(8), losses.ProxyAnchorLoss(6, 8)]))


def gradients(images, labels, n_batches=1):
    """Return the gradients of all parameters after two steps on this rank's part of batches, and the last report."""
    model, arguments = build(criterion=pairs_and_proxies, max_images=len(images))
    model.trunk[1], model.trunk[4] = nn.Identity(), nn.Identity()  # they depend on the other images and on chance
    modules = {"model": model, "criterion": arguments["criterion"], "rotation_head": arguments["rotation_head"]}
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    settings = {"clusters_per_batch": 2, "accumulate_grad_batches": n_batches}
    rounds = Rounds(model, images, ClusterPseudoLabeler(4), **settings)
    run = Run(rounds, modules, torch.optim.SGD(parameters, lr=0.0), None, [])
    step = TrainingStep(run, freeze_batch_norm=True, precision="float32", clip_norm=None)
    size = len(images) // (world_size() * n_batches)
    parts = list(zip(images.split(size), labels.split(size), strict=True))[rank() :: world_size()]
    for _ in range(2):  # DistributedDataParallel treats the first step differently
        report = step(iter(parts))
    return [parameter.grad.clone() for parameter in parameters], report


def collectives_per_step(folder):
    """Return the number of collective operations from each step to the next one, in one round."""
    names = ("all_reduce", "all_gather", "broadcast", "all_gather_object", "broadcast_object_list")
    counts = []
    with ExitStack() as stack:
        patches = [patch.object(distributed, name, wraps=getattr(distributed, name)) for name in names]
        counters = [stack.enter_context(each) for each in patches]

        class Count:
            def on_step(self, _report):
                counts.append(sum(counter.call_count for counter in counters))

        train(Count(), Checkpoint(folder / "counted"), relabel_every=7, auxiliary=None)
    return [after - before for before, after in pairwise(counts)]


def all_outcomes(folder):
    """Return the outcomes of trainings that end well."""
    calls, printed = [], io.StringIO()
    strategies = [WeightAverage(0.5), BestWeights()]
    with redirect_stderr(printed):
        trained = train(*strategies, calls.append, progress=True)
    train(*strategies, Checkpoint(folder / "run", every=2), max_steps=5)
    return {
        "gradients": gradients(*joint_batch()),
        "gradients of batches": gradients(*joint_batch(), n_batches=2),
        "collectives": collectives_per_step(folder),
        "trained": trained,
        "calls": len(calls),
        "printed": printed.getvalue(),
        "resumed": resume(*strategies, Checkpoint(folder / "run", every=2, resume=True)),
        "epochs": train(max_steps=Epochs(3), relabel_every=Epochs(1)),
        "unused parameter": train(criterion=with_unused_parameters, accumulate_grad_batches=2),
        "communities": train(labeler=ClusterPseudoLabeler(), clusters_per_batch=None),
        "changing clusters": train(labeler=ChangingClusters(6, 9, 5), criterion=memory_and_proxies),
        "disk": train(embeddings_folder=folder, cluster_on="features"),
        "memory": train(cluster_on="features"),
        "start features": train(cluster_on="features", start_features=start_features().numpy()),
        "differences": differing_ranks.all_errors(folder),
        "allowed differences": differing_ranks.trained_weights(folder),
    }


def all_ends(folder):
    """Return the outcomes of trainings that one rank ends, and errors that one rank raises."""
    run = folder / "ended"
    found = {
        "on_step": train(OnRankOne(lambda: True)),
        "on_round": train(EndsRound()),
        "interrupt": train(images=FailingImages(KeyboardInterrupt())),
        "loading": error_of(images=FailingImages(OSError("image 7 cannot be read"))),
        "auxiliary": error_of(auxiliary=lambda _: FailingRanking(144)),
        "SIGTERM": error_of(OnRankOne(terminate), Checkpoint(run, every=99)),
        "resumed after SIGTERM": train(Checkpoint(run, resume=True)),
        "uninterrupted": train(),
    }
    allocate = udmlss.inference.allocate_rows
    full = lambda n, *others: (raise_full_disk if n == N else allocate)(n, *others)  # noqa: E731
    with patch("udmlss.inference.allocate_rows", full):
        return found | {"full disk": error_of(embeddings_folder=folder)}


def main(folder, *ports):
    process = int(os.environ["RANK"])
    for size, port in zip(WORLD_SIZES, ports, strict=True):
        if process < size:
            os.environ |= {"WORLD_SIZE": str(size), "MASTER_PORT": port}
            (folder / str(size)).mkdir(exist_ok=True)
            with process_group(timeout=timedelta(seconds=120)) as device:
                assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
                found = all_outcomes(folder / str(size))
                if size == max(WORLD_SIZES):
                    found |= all_ends(folder / str(size))
            torch.save(found, folder / f"{process}-of-{size}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
