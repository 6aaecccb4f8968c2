import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from udmlss import EmbeddingModel, RotationPretextHead, UDMLSSLoss, parameter_groups
from udmlss.training.optim import check_complete


def make_parts():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EmbeddingModel(trunk, nn.Linear(4, 5))
    return model, UDMLSSLoss(losses.ProxyAnchorLoss(3, 5)), RotationPretextHead(4, 8)


def ids(parameters):
    return sorted(id(parameter) for parameter in parameters)


def in_groups(groups):
    return [parameter for group in groups for parameter in group["params"]]


@pytest.mark.parametrize("with_head", [True, False])
def test_every_parameter_that_trains_is_in_one_group_once(with_head):
    model, criterion, head = make_parts()
    parts = (model, criterion, head) if with_head else (model, criterion)
    expected = [parameter for part in parts for parameter in part.parameters()]
    assert ids(in_groups(parameter_groups(*parts))) == ids(expected)


def test_an_auxiliary_is_among_the_new_parts():
    model, criterion, head = make_parts()
    auxiliary = nn.Linear(2, 2)
    groups = parameter_groups(model, criterion, head, auxiliary=auxiliary)
    new = next(group["params"] for group in groups if group["name"] == "new parts")
    assert ids(new) == ids([*model.embedder.parameters(), *head.parameters(), *auxiliary.parameters()])


def test_each_part_learns_at_the_rate_asked_for():
    model, criterion, head = make_parts()
    groups = parameter_groups(model, criterion, head, trunk_lr=0.1, lr=0.2, proxy_lr=0.3)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for module, rate in ((model.trunk, 0.1), (model.embedder, 0.2), (head, 0.2), (criterion, 0.3)):
        assert {rates[id(parameter)] for parameter in module.parameters()} == {rate}
    assert [group["name"] for group in groups] == ["trunk", "new parts", "loss"]


def test_by_default_the_trunk_learns_slowest_and_the_proxies_fastest():
    trunk, new, loss = (group["lr"] for group in parameter_groups(*make_parts()))
    assert trunk < new < loss


def test_only_the_loss_goes_without_weight_decay_whatever_the_optimizer_s():
    optimizer = torch.optim.AdamW(parameter_groups(*make_parts()), weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0.0]


def test_frozen_parameters_are_left_out_and_empty_groups_too():
    model, _, head = make_parts()
    model.trunk.requires_grad_(requires_grad=False)
    model.embedder.bias.requires_grad_(requires_grad=False)
    groups = parameter_groups(model, UDMLSSLoss(losses.ContrastiveLoss()), head)
    assert [group["name"] for group in groups] == ["new parts"]
    assert ids(in_groups(groups)) == ids([model.embedder.weight, *head.parameters()])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_takes_the_groups_and_is_complete(optimizer):
    model, criterion, head = make_parts()
    built = optimizer(parameter_groups(model, criterion, head), lr=0.5)
    check_complete(built, model=model, criterion=criterion, rotation_head=head)
    assert [group["lr"] for group in built.param_groups] == [1e-4, 1e-3, 1e-2]


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        ("criterion", "1 left out, the first is criterion.metric_loss.proxies"),
        ("rotation_head", "4 left out, the first is rotation_head.layers.0.weight"),
        ("model", "6 left out, the first is model.trunk.0.weight"),
    ],
)
def test_an_optimizer_that_leaves_a_part_out_is_refused_with_the_parameter_s_name(left_out, sentence):
    parts = dict(zip(("model", "criterion", "rotation_head"), make_parts(), strict=True))
    held = [p for name, part in parts.items() if name != left_out for p in part.parameters()]
    with pytest.raises(ValueError, match=rf"must hold every parameter that trains, got {sentence}\. Build it on `par"):
        check_complete(torch.optim.SGD(held), **parts)


def test_frozen_parameters_and_missing_parts_need_not_be_held():
    model, criterion, _ = make_parts()
    model.trunk.requires_grad_(requires_grad=False)
    held = [*model.embedder.parameters(), *criterion.parameters()]
    check_complete(torch.optim.SGD(held), model=model, criterion=criterion, rotation_head=None)


def test_further_parameters_do_no_harm():
    model, criterion, head = make_parts()
    own = [nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.SGD([*in_groups(parameter_groups(model, criterion, head)), *own])
    check_complete(optimizer, model=model, criterion=criterion, rotation_head=head)
