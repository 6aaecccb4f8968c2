import math

import jaxtyping
import numpy as np
import pytest
import torch
from pml_losses import LOSSES, D, make
from pytorch_metric_learning import losses
from torch import nn

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    Rounds,
    UDMLSSLoss,
    frozen_batch_norm,
    parameter_groups,
    rotate_four_ways,
)
from udmlss._torch import autocast
from udmlss.losses import SelfSupervisedRanking
from udmlss.training.run import Run
from udmlss.training.step import TrainingStep

IMAGES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def make_step(
    loss=None, *, head=None, auxiliary=None, model=None, lr=0.1, step_size=1, clip_norm=None, n_batches=1, **settings
):
    model = model or EmbeddingModel(nn.Flatten(), nn.Linear(16, 5))
    criterion = UDMLSSLoss(loss or losses.ContrastiveLoss(), rotation_weight=0.5)
    modules = {"model": model, "criterion": criterion, "rotation_head": head, "auxiliary": auxiliary}
    modules = {name: module for name, module in modules.items() if module is not None}
    optimizer = torch.optim.SGD(parameter_groups(**modules, lr=lr, proxy_lr=lr), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma=0.5) if step_size else None
    settings = {"freeze_batch_norm": False, "precision": "float32"} | settings
    precision = settings["precision"]
    batches = {"clusters_per_batch": 2, "accumulate_grad_batches": n_batches}
    rounds = Rounds(model, IMAGES, ClusterPseudoLabeler(2), precision=precision, **batches)
    run = Run(rounds, modules, optimizer, scheduler, [])
    return TrainingStep(run, clip_norm=clip_norm, **settings)


def take(step, labels=LABELS):
    return step(iter([(IMAGES, labels)]))


def parameters_of(step):
    return [parameter for group in step.run.optimizer.param_groups for parameter in group["params"]]


def values_of(step):
    return torch.cat([parameter.detach().flatten().clone() for parameter in parameters_of(step)])


def state_of(step):
    """Return all numbers of the modules, the optimizer and the scheduler."""
    run = step.run
    tensors = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in run.modules.items()}
    optimizer = [{k: v.clone() for k, v in state.items()} for state in run.optimizer.state.values()]
    return tensors, optimizer, run.scheduler.last_epoch, run.step


class Recording(RotationPretextHead):
    """A head that stores its features and logits."""

    def forward(self, features):
        self.features, self.logits = features, super().forward(features)
        return self.logits


class Auxiliary(nn.Module):
    """An auxiliary loss that pulls the trunk's features to a number that it learns."""

    def __init__(self, factor=1.0, reduction="mean"):
        super().__init__()
        self.target = nn.Parameter(torch.tensor(3.0))
        self.factor, self.reduction = factor, reduction

    def forward(self, model, images):
        self.images = images
        squares = self.factor * (model.trunk(images) - self.target) ** 2
        return squares.mean() if self.reduction == "mean" else squares


class FailingGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def model_with_batch_norm():
    return EmbeddingModel(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), nn.Linear(16, 5))


class Failing(losses.ContrastiveLoss):
    """A loss that is not finite, or whose gradient is not, once `failure` is set."""

    failure = None

    def forward(self, embeddings, labels, *_):
        if self.failure is None:
            return super().forward(embeddings, labels)
        if self.failure == "gradient":
            return FailingGradient.apply(embeddings.sum())
        return embeddings.sum() * float(self.failure)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("nan", r"The loss must be finite, got nan \(metric nan, rotation 1\.39\d?\)\."),
        ("inf", r"got (-?inf|nan) \(metric (-?inf|nan), rotation 1\.39\d?\)\."),
        ("gradient", r"The gradient must be finite, got a norm of (inf|nan)\."),
    ],
)
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_loss_or_gradient_that_is_not_finite_changes_nothing(failure, message, clip_norm):
    loss, head = Failing(), RotationPretextHead(16, 4)
    step = make_step(loss, model=model_with_batch_norm(), head=head, clip_norm=clip_norm)
    step.run.model.train()
    take(step)
    before = state_of(step)
    loss.failure = failure
    with pytest.raises(FloatingPointError, match=message + r" Lower the learning rate, pass `clip_norm=1\.0`, or use"):
        take(step)
    torch.testing.assert_close(state_of(step), before, rtol=0, atol=0)
    loss.failure = None
    assert take(step).step == 2
    assert values_of(step).isfinite().all()


def test_rotation_and_auxiliary_losses_that_are_not_finite_are_named():
    head = RotationPretextHead(16, 4)
    nn.init.constant_(head.layers[2].bias, math.inf)
    with pytest.raises(FloatingPointError, match=r"got nan \(metric 2, rotation nan\)\."):
        take(make_step(lambda embeddings, _labels: embeddings.sum() * 0 + 2, head=head))
    step = make_step(auxiliary=Auxiliary(factor=math.inf))
    before = values_of(step)
    with pytest.raises(FloatingPointError, match=r"got inf \(metric .*, auxiliary inf\)\. Lower"):
        take(step)
    assert torch.equal(values_of(step), before)


def test_auxiliary_loss_is_added_and_trained():
    step = make_step(head=Recording(16, 4), auxiliary=Auxiliary())
    expected = ((IMAGES.flatten(1) - 3) ** 2).mean()
    gradient = -2 * (IMAGES.mean() - 3)
    report = take(step)
    assert report.auxiliary_loss == pytest.approx(expected.item(), rel=1e-5)
    total = report.metric_loss + 0.5 * report.rotation_loss + report.auxiliary_loss
    assert report.loss == pytest.approx(total, rel=1e-5)
    assert step.run.auxiliary.target.item() == pytest.approx(3 - 0.1 * gradient.item(), rel=1e-5)
    assert torch.equal(step.run.auxiliary.images, IMAGES)


def test_auxiliary_loss_must_be_a_scalar(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    step = make_step(auxiliary=Auxiliary(reduction="none"))
    before = values_of(step)
    with pytest.raises(ValueError, match=r"`auxiliary` must return a scalar, got shape \(6, 16\)\. Return its mean"):
        take(step)
    assert torch.equal(values_of(step), before)


def test_step_is_one_of_gradient_descent():
    step = make_step(lambda embeddings, labels: (embeddings[:, 0] * labels).sum(), lr=0.25)
    before = values_of(step)
    loss = step.run.criterion(step.run.model(IMAGES), LABELS)
    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters_of(step))])
    report = take(step)
    torch.testing.assert_close(values_of(step), before - 0.25 * gradient)
    assert report.loss == report.metric_loss == pytest.approx(loss.item())
    assert (report.rotation_loss, report.rotation_accuracy, report.auxiliary_loss) == (None, None, None)


def test_gradients_of_two_steps_are_not_added():
    step = make_step(lambda embeddings, _labels: embeddings[:, 0].sum(), lr=0.0)
    take(step)
    first = [parameter.grad.clone() for parameter in parameters_of(step)]
    take(step)
    torch.testing.assert_close([parameter.grad for parameter in parameters_of(step)], first)


@pytest.mark.parametrize(
    ("options", "tolerance"), [({}, 1e-6), ({"chunk_size": 4}, 1e-6), ({"precision": "float16"}, 1e-2)]
)
@pytest.mark.parametrize("n_batches", [1, 2, 3])
def test_step_over_several_batches_has_the_mean_of_their_gradients(n_batches, options, tolerance):
    generator = torch.Generator().manual_seed(2)
    batches = [(torch.randn(6, 1, 4, 4, generator=generator), LABELS) for _ in range(2 * n_batches)]
    step, loaded = make_step(losses.ProxyAnchorLoss(3, 5), lr=0.0, n_batches=n_batches, **options), iter(batches)
    step.run.scaler.load_state_dict(step.run.scaler.state_dict() | {"scale": 64.0})  # so that no gradient is infinite
    for number in range(2):
        report = step(loaded)
        found, optimizer = [parameter.grad.clone() for parameter in parameters_of(step)], step.run.optimizer
        optimizer.zero_grad()
        own = batches[number * n_batches : (number + 1) * n_batches]
        with autocast(step.run.model, options.get("precision", "float32")):
            embedded = [(step.run.model(images), labels) for images, labels in own]
        expected = [step.run.criterion(*pair) for pair in embedded]
        for loss in expected:
            (loss / n_batches).backward()
        torch.testing.assert_close(
            found, [parameter.grad for parameter in parameters_of(step)], rtol=tolerance, atol=tolerance
        )
        assert report.loss == report.metric_loss == pytest.approx(torch.stack(expected).mean().item(), rel=tolerance)
        assert report.step == step.run.scheduler.last_epoch == number + 1
    assert next(loaded, None) is None


def test_failure_in_a_later_batch_of_a_step_changes_nothing_and_leaves_no_gradient():
    loss, n_loaded = Failing(), 0
    step = make_step(loss, model=model_with_batch_norm(), n_batches=3)

    def batches():
        nonlocal n_loaded
        for failure in (None, None, "nan"):
            loss.failure, n_loaded = failure, n_loaded + 1
            yield IMAGES, LABELS

    before = state_of(step)
    with pytest.raises(FloatingPointError, match="The loss must be finite"):
        step(batches())
    assert n_loaded == 3
    torch.testing.assert_close(state_of(step), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in parameters_of(step))


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("with_head", [True, False])
def test_clip_norm_limits_the_norm_of_all_gradients_together_and_keeps_the_direction(with_head, n_batches):
    changes = {}
    for clip_norm in (None, 0.5, 1e6):
        torch.manual_seed(4)
        head = RotationPretextHead(16, 4) if with_head else None
        loss = losses.MultipleLosses([losses.ContrastiveLoss(), losses.ProxyAnchorLoss(3, 5)], weights=[10, 10])
        step = make_step(loss, head=head, lr=1.0, clip_norm=clip_norm, n_batches=n_batches)
        before = values_of(step)
        step(iter([(IMAGES, LABELS)] * n_batches))
        changes[clip_norm] = before - values_of(step)
    assert changes[None].norm() > 1
    assert changes[0.5].norm().item() == pytest.approx(0.5, rel=1e-3)
    torch.testing.assert_close(changes[0.5] / 0.5, changes[None] / changes[None].norm(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(changes[1e6], changes[None])


def test_steps_are_counted_and_the_scheduler_steps_with_them():
    step = make_step(lr=1.0)
    for number in range(4):
        assert step.run.optimizer.param_groups[0]["lr"] == 0.5**number
        assert take(step).step == step.run.step == number + 1
    assert step.run.scheduler.last_epoch == 4
    constant = make_step(lr=1.0, step_size=None)
    take(constant)
    assert constant.run.optimizer.param_groups[0]["lr"] == 1.0


def rotation_of(rotated):
    """Return the index and the rotation of the image that equals this one, by trying all."""
    [found] = [
        (index, rotation)
        for index, image in enumerate(IMAGES)
        for rotation in range(4)
        if np.array_equal(np.rot90(image.numpy(), rotation, axes=(1, 2)), rotated.numpy())
    ]
    return found


@pytest.mark.parametrize("max_images", [1, 4, 16])
def test_rotation_figures_are_those_of_the_rotated_images(max_images):
    head = Recording(16, 4, max_images=max_images)
    nn.init.normal_(head.layers[2].weight, std=3)
    report = take(make_step(head=head))
    found = [rotation_of(row.view(1, 4, 4)) for row in head.features]
    assert len(set(found)) == len(found) == 4 * min(max_images, 6)
    assert len({index for index, _ in found}) == min(max_images, 6)
    logits, rotations = head.logits.tolist(), [rotation for _, rotation in found]
    correct = [max(range(4), key=row.__getitem__) == rotation for row, rotation in zip(logits, rotations, strict=True)]
    entropies = [
        math.log(sum(map(math.exp, row))) - row[rotation] for row, rotation in zip(logits, rotations, strict=True)
    ]
    assert report.rotation_accuracy == pytest.approx(sum(correct) / len(correct))
    assert report.rotation_loss == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    assert report.loss == pytest.approx(report.metric_loss + 0.5 * report.rotation_loss, rel=1e-5)


@pytest.mark.parametrize(("freeze", "n_forward"), [(True, [6, 18]), (False, [6, 24])])
def test_features_of_upright_images_are_reused_if_batch_norm_is_frozen(freeze, n_forward):
    head, found, model = RotationPretextHead(16, 4), [], model_with_batch_norm()
    model.trunk[0].running_mean += 0.5
    step = make_step(head=head, model=model, freeze_batch_norm=freeze, lr=0.0)
    handle = model.trunk.register_forward_hook(lambda _part, inputs, _output: found.append(len(inputs[0])))
    with frozen_batch_norm(model):
        take(step)
        assert found == n_forward
        handle.remove()
        gradients = [parameter.grad.clone() for parameter in parameters_of(step)]
        images, rotations = rotate_four_ways(IMAGES)
        step.run.optimizer.zero_grad()
        step.run.criterion(model(IMAGES), LABELS, head(model.trunk(images)), rotations).backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in parameters_of(step)])


def test_bfloat16_leaves_parameters_and_gradients_in_float32():
    auxiliary = SelfSupervisedRanking(16)
    step = make_step(losses.ProxyAnchorLoss(3, 5), head=Recording(16, 4), auxiliary=auxiliary, precision="bfloat16")
    before = values_of(step)
    report = take(step)
    assert step.run.rotation_head.logits.dtype == torch.bfloat16
    dtypes = {value.dtype for parameter in parameters_of(step) for value in (parameter, parameter.grad)}
    assert dtypes == {torch.float32}
    assert math.isfinite(report.loss)
    assert not torch.equal(values_of(step), before)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # of pytorch-metric-learning
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_have_the_gradient_of_the_whole_batch(loss):
    gradients = []
    for chunk_size in (None, 4, 1):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh())
        model, head = EmbeddingModel(trunk, nn.Linear(12, D)).double(), RotationPretextHead(12, 4).double()
        step = make_step(make(loss), head=head, model=model, chunk_size=chunk_size)
        torch.manual_seed(0)  # some losses sample
        step(iter([(IMAGES.double(), LABELS)]))
        gradients.append(torch.cat([parameter.grad.double().flatten() for parameter in parameters_of(step)]))
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=1e-6, atol=1e-6)


def test_a_chunk_updates_the_statistics_of_batch_norm_once():
    model, expected = model_with_batch_norm(), model_with_batch_norm()
    for chunk in IMAGES.split(4):
        expected(chunk)
    take(make_step(model=model, chunk_size=4))
    found, norm = model.trunk[0], expected.trunk[0]
    assert found.num_batches_tracked == norm.num_batches_tracked == 2
    assert found.momentum == norm.momentum
    torch.testing.assert_close([found.running_mean, found.running_var], [norm.running_mean, norm.running_var])


def test_float16_skips_steps_with_an_infinite_gradient_and_lowers_the_scale():
    step = make_step(Failing(), precision="float16")
    before = values_of(step)
    step.run.criterion.metric_loss.failure = "gradient"
    scale = step.run.scaler.get_scale()
    take(step)
    assert step.run.scaler.get_scale() == scale / 2
    assert torch.equal(values_of(step), before)
    step.run.criterion.metric_loss.failure = None
    take(step)
    assert not torch.equal(values_of(step), before)
    saved = step.run.scaler.state_dict()
    assert saved["scale"] == scale / 2
    step.run.criterion.metric_loss.failure = "gradient"
    while step.run.scaler.get_scale() > 1:
        take(step)
    with pytest.raises(FloatingPointError, match="The gradient must be finite"):
        take(step)


def test_batch_without_assigned_images_trains_the_rotation_only():
    step = make_step(head=RotationPretextHead(16, 4), lr=1.0)
    embedder, head = step.run.model.embedder.weight.clone(), step.run.rotation_head.layers[0].weight.clone()
    assert take(step, torch.full((6,), -1)).metric_loss == 0
    assert torch.equal(step.run.model.embedder.weight, embedder)
    assert not torch.equal(step.run.rotation_head.layers[0].weight, head)
