import math

import jaxtyping
import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from udmlss import EmbeddingModel, RotationPretextHead, UDMLSSLoss, parameter_groups, rotate_four_ways
from udmlss.inference import InferenceOptions
from udmlss.losses import SelfSupervisedRanking
from udmlss.training.state import Parts
from udmlss.training.step import Losses, Step

IMAGES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def make_step(
    loss=None, *, head=None, auxiliary=None, lr=0.1, step_size=1, rotation_images=3, clip_norm=None, **settings
):
    model = EmbeddingModel(nn.Flatten(), nn.Linear(16, 5))
    criterion = UDMLSSLoss(losses.ContrastiveLoss() if loss is None else loss, rotation_weight=0.5)
    groups = parameter_groups(model, criterion, head, auxiliary=auxiliary, lr=lr, proxy_lr=lr)
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma=0.5) if step_size else None
    parts = Parts(model, criterion, head, auxiliary, optimizer, scheduler, None)
    passing = InferenceOptions(**{"num_workers": 0, "precision": "float32", "channels_last": False} | settings)
    forward = Losses(
        model, criterion, rotation_head=head, auxiliary=auxiliary, upright_once=False, precision=passing.precision
    )
    return Step(parts, forward, passing, rotation_images=rotation_images, clip_norm=clip_norm)


def parameters_of(step):
    return [p for group in step.parts.optimizer.param_groups for p in group["params"]]


def values_of(step):
    return torch.cat([p.detach().flatten().clone() for p in parameters_of(step)])


def turn_of(turned, images):
    """Return the number of the image and the turn that give this image, by trying all."""
    [found] = [
        (number, turn)
        for number, image in enumerate(images)
        for turn in range(4)
        if np.array_equal(np.rot90(image.numpy(), turn, axes=(1, 2)), turned.numpy())
    ]
    return found


class Recorded(RotationPretextHead):
    """Keeps what it was given and what it said."""

    def forward(self, features):
        self.features, self.logits = features, super().forward(features)
        return self.logits


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (lambda embeddings, labels: embeddings.sum() * math.nan, r"found nan \(metric nan\)"),
        (lambda embeddings, labels: embeddings.sum() / 0 + math.inf, r"\(metric (inf|nan)\)"),
    ],
)
def test_a_loss_that_is_not_finite_is_refused_before_anything_changes(loss, part):
    step = make_step(loss)
    before, epoch = values_of(step), step.parts.scheduler.last_epoch
    with pytest.raises(FloatingPointError, match=part + r"\. Lower the learning rate, set `clip_norm=1.0`, or try"):
        step(IMAGES, LABELS)
    assert torch.equal(values_of(step), before)
    assert step.parts.scheduler.last_epoch == epoch
    assert not step.parts.optimizer.state


def test_a_rotation_loss_that_is_not_finite_is_named():
    step = make_step(lambda embeddings, labels: embeddings.sum() * 0 + 2, head=RotationPretextHead(16, 4))
    nn.init.constant_(step.parts.rotation_head.layers[2].bias, math.inf)
    before = values_of(step)
    with pytest.raises(FloatingPointError, match=r"found nan \(metric 2.0, rotation nan\)"):
        step(IMAGES, LABELS)
    assert torch.equal(values_of(step).nan_to_num(), before.nan_to_num())


class Further(nn.Module):
    """An auxiliary that pulls the trunk's features to a number it learns, and remembers what it was shown."""

    def __init__(self, reduction="mean", factor=1.0):
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(3.0))
        self.reduction, self.factor, self.seen = reduction, factor, []

    def forward(self, model, images):
        self.seen.append(images)
        squares = self.factor * (model.trunk(images) - self.middle) ** 2
        return squares.mean() if self.reduction == "mean" else squares


def test_an_auxiliary_is_added_as_it_is_and_learns():
    step = make_step(head=Recorded(16, 4), auxiliary=Further())
    expected = ((IMAGES.flatten(1) - 3) ** 2).mean()
    gradient = -2 * (IMAGES.mean() - 3)
    measured, _ = step(IMAGES, LABELS)
    assert measured.auxiliary_loss == pytest.approx(expected.item(), rel=1e-5)
    parts = measured.metric_loss + 0.5 * measured.rotation_loss + measured.auxiliary_loss
    assert measured.loss == pytest.approx(parts, rel=1e-5)
    assert step.parts.auxiliary.middle.item() == pytest.approx(3 - 0.1 * gradient.item(), rel=1e-5)
    [seen] = step.parts.auxiliary.seen
    assert torch.equal(seen, IMAGES)


def test_without_an_auxiliary_its_loss_is_none():
    assert make_step()(IMAGES, LABELS)[0].auxiliary_loss is None


def test_an_auxiliary_in_half_precision_is_added_in_float32():
    step = make_step(auxiliary=SelfSupervisedRanking(16), precision="bfloat16")
    measured, _ = step(IMAGES, LABELS)
    assert math.isfinite(measured.auxiliary_loss)
    assert {p.grad.dtype for p in step.parts.auxiliary.parameters()} == {torch.float32}


def test_an_auxiliary_that_is_not_finite_is_named():
    step = make_step(auxiliary=Further(factor=math.inf))
    before = values_of(step)
    with pytest.raises(FloatingPointError, match=r"found inf \(metric .*, auxiliary inf\)\. Lower"):
        step(IMAGES, LABELS)
    assert torch.equal(values_of(step), before)


def test_an_auxiliary_that_is_no_scalar_is_refused_before_anything_changes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    step = make_step(auxiliary=Further(reduction="none"))
    before = values_of(step)
    with pytest.raises(ValueError, match=r"`auxiliary` must return a scalar, got shape \(6, 16\)\. Return its mean"):
        step(IMAGES, LABELS)
    assert torch.equal(values_of(step), before)


def test_one_step_of_gradient_descent_is_taken():
    step = make_step(lambda embeddings, labels: (embeddings[:, 0] * labels).sum(), lr=0.25)
    before = values_of(step)
    loss = step.parts.criterion(step.parts.model(IMAGES), LABELS)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters_of(step))])
    measured, _ = step(IMAGES, LABELS)
    torch.testing.assert_close(values_of(step), before - 0.25 * gradient)
    assert measured.loss == measured.metric_loss == pytest.approx(loss.item())
    assert measured.rotation_loss is None
    assert measured.rotation_accuracy is None


def test_gradients_of_the_step_before_do_not_add_up():
    step = make_step(lambda embeddings, labels: embeddings[:, 0].sum(), lr=0.0)
    step(IMAGES, LABELS)
    first = [p.grad.clone() for p in parameters_of(step)]
    step(IMAGES, LABELS)
    torch.testing.assert_close([p.grad for p in parameters_of(step)], first)


@pytest.mark.parametrize("with_head", [True, False])
def test_clipping_bounds_the_norm_of_all_gradients_together_and_keeps_the_direction(with_head):
    changes = {}
    for clip_norm in (None, 0.5):
        torch.manual_seed(4)
        head = RotationPretextHead(16, 4) if with_head else None
        loss = losses.MultipleLosses([losses.ContrastiveLoss(), losses.ProxyAnchorLoss(3, 5)], weights=[10, 10])
        step = make_step(loss, head=head, lr=1.0, clip_norm=clip_norm)
        before = values_of(step)
        step(IMAGES, LABELS)
        changes[clip_norm] = before - values_of(step)
    assert changes[None].norm() > 1
    assert changes[0.5].norm().item() == pytest.approx(0.5, rel=1e-3)
    torch.testing.assert_close(changes[0.5] / 0.5, changes[None] / changes[None].norm(), rtol=1e-3, atol=1e-4)


def test_a_gradient_within_the_bound_is_not_clipped():
    changes = []
    for clip_norm in (None, 1e6):
        torch.manual_seed(4)
        step = make_step(clip_norm=clip_norm)
        before = values_of(step)
        step(IMAGES, LABELS)
        changes.append(before - values_of(step))
    assert changes[0].any()
    torch.testing.assert_close(changes[0], changes[1])


def test_the_scheduler_steps_once_per_step():
    step = make_step(lr=1.0)
    for number in range(4):
        assert step.parts.optimizer.param_groups[0]["lr"] == 0.5**number
        step(IMAGES, LABELS)
    assert step.parts.scheduler.last_epoch == 4


def test_without_a_scheduler_the_rate_stays():
    step = make_step(lr=1.0, step_size=None)
    step(IMAGES, LABELS)
    assert step.parts.optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("rotation_images", [1, 3, 6])
def test_different_images_of_the_batch_are_turned_four_ways(rotation_images):
    step = make_step(head=Recorded(16, 4), rotation_images=rotation_images)
    step(IMAGES, LABELS)
    found = [turn_of(row.view(1, 4, 4), IMAGES) for row in step.parts.rotation_head.features]
    assert len(found) == 4 * rotation_images
    assert len(set(found)) == len(found)
    assert len({number for number, _ in found}) == rotation_images


@pytest.mark.parametrize("seed", range(3))
def test_the_rotation_figures_are_those_of_the_turns_that_were_shown(seed):
    torch.manual_seed(seed)
    step = make_step(head=Recorded(16, 4), rotation_images=4)
    nn.init.normal_(step.parts.rotation_head.layers[2].weight, std=3)
    measured, _ = step(IMAGES, LABELS)
    turns = [turn_of(row.view(1, 4, 4), IMAGES)[1] for row in step.parts.rotation_head.features]
    logits = step.parts.rotation_head.logits.tolist()
    right = [max(range(4), key=row.__getitem__) == turn for row, turn in zip(logits, turns, strict=True)]
    losses_ = [math.log(sum(map(math.exp, row))) - row[turn] for row, turn in zip(logits, turns, strict=True)]
    assert measured.rotation_accuracy == pytest.approx(sum(right) / len(right))
    assert measured.rotation_loss == pytest.approx(sum(losses_) / len(losses_), rel=1e-4)
    assert measured.loss == pytest.approx(measured.metric_loss + 0.5 * measured.rotation_loss, rel=1e-5)


@pytest.mark.parametrize(("upright_once", "passed"), [(True, [6, 9]), (False, [6, 12])])
def test_images_that_go_through_the_trunk_upright_once_give_the_same_gradients(upright_once, passed):
    head, turned, found = RotationPretextHead(16, 4), torch.tensor([4, 0, 1]), []
    model = EmbeddingModel(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten()), nn.Linear(16, 5))
    criterion = UDMLSSLoss(losses.ContrastiveLoss(), rotation_weight=0.5)
    settings = {"rotation_head": head, "auxiliary": None, "upright_once": upright_once, "precision": "float32"}
    forward = Losses(model, criterion, **settings)
    handle = model.trunk.register_forward_hook(lambda _part, inputs, _output: found.append(len(inputs[0])))
    forward(IMAGES, LABELS, turned)["loss"].backward()
    handle.remove()
    gradients = [parameter.grad.clone() for parameter in forward.parameters()]
    forward.zero_grad()
    images, turns = rotate_four_ways(IMAGES[turned])
    criterion(model(IMAGES), LABELS, head(model.trunk(images)), turns).backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in forward.parameters()])
    assert found == passed


def test_which_images_are_turned_follows_torchs_random_state_which_fit_seeds():
    shown = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        step = make_step(head=Recorded(16, 4), rotation_images=2)
        torch.manual_seed(seed)
        step(IMAGES, LABELS)
        shown.append(step.parts.rotation_head.features.clone())
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])


def test_bfloat16_leaves_parameters_and_gradients_in_float32():
    step = make_step(losses.ProxyAnchorLoss(3, 5), head=Recorded(16, 4), precision="bfloat16")
    before = values_of(step)
    measured, _ = step(IMAGES, LABELS)
    assert step.parts.rotation_head.logits.dtype == torch.bfloat16
    assert {p.dtype for p in parameters_of(step)} == {p.grad.dtype for p in parameters_of(step)} == {torch.float32}
    assert math.isfinite(measured.loss)
    assert not torch.equal(values_of(step), before)


def test_channels_last_reaches_the_trunk_for_images_and_turned_images():
    seen = []
    step = make_step(head=RotationPretextHead(48, 4), channels_last=True)
    step.parts.model.embedder = nn.Linear(48, 5)
    step.parts.model.trunk.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    step(torch.randn(6, 3, 4, 4), LABELS)
    assert seen == [True, True]


def test_a_batch_in_which_everything_is_left_out_teaches_rotation_alone():
    step = make_step(head=RotationPretextHead(16, 4), lr=1.0)
    embedder, head = step.parts.model.embedder.weight.clone(), step.parts.rotation_head.layers[0].weight.clone()
    measured, _ = step(IMAGES, torch.full((6,), -1))
    assert measured.metric_loss == 0
    assert torch.equal(step.parts.model.embedder.weight, embedder)
    assert not torch.equal(step.parts.rotation_head.layers[0].weight, head)
