import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from udmlss import EmbeddingModel, RotationPretextHead, UDMLSSLoss, parameter_groups
from udmlss.training.optim import left_out_parameters


def make_parts():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EmbeddingModel(trunk, nn.Linear(4, 5))
    return model, UDMLSSLoss(losses.ProxyAnchorLoss(3, 5)), RotationPretextHead(4, 8)


def modules_of(*parts):
    return dict(zip(("model", "criterion", "rotation_head"), parts, strict=False))


def ids(parameters):
    return sorted(id(parameter) for parameter in parameters)


def in_groups(groups):
    return [parameter for group in groups for parameter in group["params"]]


@pytest.mark.parametrize("with_head", [True, False])
def test_each_trainable_parameter_is_in_one_group(with_head):
    model, criterion, head = make_parts()
    parts = (model, criterion, head) if with_head else (model, criterion)
    expected = [parameter for part in parts for parameter in part.parameters()]
    assert ids(in_groups(parameter_groups(*parts))) == ids(expected)


def test_auxiliary_loss_is_in_the_group_of_new_parts():
    model, criterion, head = make_parts()
    auxiliary = nn.Linear(2, 2)
    groups = parameter_groups(model, criterion, head, auxiliary=auxiliary)
    new = next(group["params"] for group in groups if group["name"] == "new parts")
    assert ids(new) == ids([*model.embedder.parameters(), *head.parameters(), *auxiliary.parameters()])


def test_shared_parameters_are_in_the_first_group_of_their_parts():
    model, criterion, head = make_parts()
    auxiliary = nn.Sequential(model.trunk, model.embedder, head, nn.Linear(2, 2))
    groups = {group["name"]: group["params"] for group in parameter_groups(model, criterion, head, auxiliary=auxiliary)}
    assert ids(groups["trunk"]) == ids(model.trunk.parameters())
    assert ids(groups["new parts"]) == ids(
        [p for part in (model.embedder, head, auxiliary[3]) for p in part.parameters()]
    )
    torch.optim.AdamW(parameter_groups(model, criterion, head, auxiliary=auxiliary))


def test_each_group_has_its_learning_rate():
    model, criterion, head = make_parts()
    groups = parameter_groups(model, criterion, head, trunk_lr=0.1, lr=0.2, proxy_lr=0.3)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for module, rate in ((model.trunk, 0.1), (model.embedder, 0.2), (head, 0.2), (criterion, 0.3)):
        assert {rates[id(parameter)] for parameter in module.parameters()} == {rate}
    assert [group["name"] for group in groups] == ["trunk", "new parts", "loss"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_groups_are_accepted_by_any_optimizer_and_only_the_loss_has_no_weight_decay(optimizer):
    parts = make_parts()
    built = optimizer(parameter_groups(*parts), lr=0.5, weight_decay=0.25)
    assert left_out_parameters(built, modules_of(*parts)) == []
    assert [group["lr"] for group in built.param_groups] == [3e-5, 3e-5, 1e-2]
    assert [group["weight_decay"] for group in built.param_groups] == [0.25, 0.25, 0.0]


def test_frozen_parameters_and_empty_groups_are_omitted():
    model, _, head = make_parts()
    model.trunk.requires_grad_(requires_grad=False)
    model.embedder.bias.requires_grad_(requires_grad=False)
    groups = parameter_groups(model, UDMLSSLoss(losses.ContrastiveLoss()), head)
    assert [group["name"] for group in groups] == ["new parts"]
    assert ids(in_groups(groups)) == ids([model.embedder.weight, *head.parameters()])


@pytest.mark.parametrize("name", ["trunk_lr", "lr", "proxy_lr"])
@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_learning_rates_must_be_finite_and_not_negative(name, rate):
    with pytest.raises(ValueError, match=rf"`{name}` must be (at least 0|finite), got"):
        parameter_groups(*make_parts(), **{name: rate})


def test_model_must_have_a_trunk():
    with pytest.raises(TypeError, match=r"`model` must have a `trunk` .*, got Flatten\. Wrap it: EmbeddingModel"):
        parameter_groups(nn.Flatten(), nn.Identity())


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        ("criterion", ["criterion.metric_loss.proxies"]),
        ("rotation_head", [f"rotation_head.layers.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]),
    ],
)
def test_parameters_that_the_optimizer_does_not_hold_are_named(missing, names):
    modules = modules_of(*make_parts())
    own = nn.Parameter(torch.zeros(3))
    found = [p for name, part in modules.items() if name != missing for p in part.parameters()]
    assert left_out_parameters(torch.optim.SGD([*found, own]), modules) == names


def test_frozen_parameters_need_not_be_held():
    model, criterion, _ = make_parts()
    model.trunk.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD([*model.embedder.parameters(), *criterion.parameters()])
    assert left_out_parameters(optimizer, modules_of(model, criterion)) == []
