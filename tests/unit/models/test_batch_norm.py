import pickle
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn

from udmlss import frozen_batch_norm
from udmlss.models import BatchNormNeck

MODELS = {
    "2d": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()),
    "1d": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4), nn.Linear(4, 64)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm2d(3))), nn.Flatten()),
    "without scale": lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 3), nn.Flatten()),
}
IMAGES = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1)) + 3


def norms_of(model):
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def statistics(model):
    return [buffer.clone() for norm in norms_of(model) for buffer in norm.buffers()]


@pytest.fixture(params=MODELS)
def model(request):
    model = MODELS[request.param]()
    for norm in norms_of(model):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def test_running_statistics_are_fixed_within_the_block_alone(model):
    before = statistics(model)
    with frozen_batch_norm(model):
        with frozen_batch_norm(model):  # blocks may be nested
            model.train()
            model(IMAGES)
        for norm in norms_of(model):
            norm.train()
        model(IMAGES)
    assert all(map(torch.equal, before, statistics(model)))
    assert not any("train" in vars(part) for part in model.modules())
    model.train()
    model(IMAGES)
    assert not any(map(torch.equal, before, statistics(model)))


def test_the_output_is_that_of_evaluation_mode(model):
    in_training = model.train()(IMAGES)
    for norm in norms_of(model):
        norm.reset_running_stats()
        norm.running_mean += 0.5
    expected = model.eval()(IMAGES)
    model.train()
    with frozen_batch_norm(model):
        found = model(IMAGES)
        alone = torch.cat([model(image[None]) for image in IMAGES])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)  # independent of the rest of the batch
    assert not torch.allclose(found, in_training)


def test_scale_and_shift_are_trained(model):
    model.train()
    with frozen_batch_norm(model):
        (model(IMAGES) * torch.randn(5, 1)).square().sum().backward()
    assert all(parameter.grad.any() for norm in norms_of(model) for parameter in norm.parameters())


def test_other_layers_stay_in_training_mode():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    model[0].running_mean += 1
    with frozen_batch_norm(model):
        found = model(torch.ones(2, 3, 6, 6))
        assert model[1].training
    assert (found == 0).any()


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("error", [None, KeyError])
def test_restores_the_mode_of_every_submodule(model, mode, error):
    model.train(mode)
    before = [part.training for part in model.modules()]
    with pytest.raises(error) if error else nullcontext(), frozen_batch_norm(model):
        model(IMAGES)
        if error:
            raise error
    assert [part.training for part in model.modules()] == before
    assert not any("train" in vars(part) for part in model.modules())


def test_rejects_initial_statistics():
    model = MODELS["2d"]()
    message = r"needs the running statistics of .*, got initial statistics in all 2 layers\. Pass `from_scratch=True`"
    with pytest.raises(ValueError, match=message), frozen_batch_norm(model):
        pytest.fail("the block must not start")
    assert not any("train" in vars(part) for part in model.modules())


def test_a_new_layer_on_a_pretrained_model_learns_its_statistics():
    model = MODELS["2d"]()
    model[1].running_mean.normal_()
    before = statistics(model)
    with frozen_batch_norm(model):
        model.train()
        model(IMAGES)
    after = statistics(model)
    assert all(map(torch.equal, before[:3], after[:3]))
    assert not any(map(torch.equal, before[3:], after[3:]))


def test_a_new_neck_on_a_trunk_without_batch_normalization_learns_its_statistics():
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(108), BatchNormNeck(108))
    before = model[2].running_mean.clone()
    with frozen_batch_norm(model):
        model.train()(IMAGES)
    assert not torch.equal(model[2].running_mean, before)
    untrained = nn.Sequential(nn.BatchNorm1d(4), BatchNormNeck(4))
    with pytest.raises(ValueError, match="initial statistics in all 2 layers"), frozen_batch_norm(untrained):
        pytest.fail("the block must not start")


@pytest.mark.parametrize(("name", "value"), [("running_mean", 0.5), ("running_var", 2), ("num_batches_tracked", 1)])
def test_a_layer_with_any_trained_statistic_is_frozen(name, value):
    norm = nn.BatchNorm2d(3)
    getattr(norm, name).fill_(value)
    before = statistics(norm)
    with frozen_batch_norm(norm):
        norm.train()(IMAGES)
    assert all(map(torch.equal, before, statistics(norm)))


@pytest.mark.parametrize("copy", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_copy_of_a_frozen_model_can_be_trained(model, copy):
    with frozen_batch_norm(model):
        copied = copy(model)
        before = statistics(model)
        copied.train()(IMAGES)
        model.train()(IMAGES)
        assert all(map(torch.equal, before, statistics(model)))
        assert not any(map(torch.equal, before, statistics(copied)))
    assert all(part.training for part in copied.train().modules())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_model_that_was_compiled_in_training_mode_is_frozen(backend):
    model = MODELS["2d"]()
    compiled = torch.compile(model, backend=backend)
    compiled.train()
    for _ in range(2):
        compiled(IMAGES)
    before = statistics(model)
    with frozen_batch_norm(compiled):
        compiled.train()
        found = compiled(IMAGES)
        found.sum().backward()
        assert all(map(torch.equal, before, statistics(model)))
        torch.testing.assert_close(found, model.eval()(IMAGES))
    compiled.train()(IMAGES)
    assert not any(map(torch.equal, before, statistics(model)))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4)),
        nn.BatchNorm1d(4, track_running_stats=False),
    ],
)
def test_has_no_effect_without_running_statistics(model):
    expected = model.train()(torch.eye(4))
    with frozen_batch_norm(model):
        assert torch.equal(model(torch.eye(4)), expected)
