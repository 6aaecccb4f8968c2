import pytest
import torch
from torch import nn

from udmlss import frozen_batch_norm

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


def test_statistics_stay_whatever_train_is_called(model):
    before = statistics(model)
    with frozen_batch_norm(model):
        for _ in range(3):
            model.train()
            for norm in norms_of(model):
                norm.train()
            model(IMAGES)
    assert all(map(torch.equal, before, statistics(model)))


def test_without_it_they_would_not_stay(model):
    before = statistics(model)
    model.train()
    model(IMAGES)
    assert not any(map(torch.equal, before, statistics(model)))


def test_the_output_is_that_of_evaluation_mode(model):
    expected = model.eval()(IMAGES)
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
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)  # no image depends on its batch
    assert not torch.allclose(found, in_training)


def test_scale_and_shift_still_train(model):
    model.train()
    with frozen_batch_norm(model):
        (model(IMAGES) * torch.randn(5, 1)).square().sum().backward()
    assert all(parameter.grad.any() for norm in norms_of(model) for parameter in norm.parameters())


def test_only_batch_norm_is_held():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    model[0].running_mean += 1
    with frozen_batch_norm(model):
        found = model(torch.ones(2, 3, 6, 6))
        assert model[1].training
    assert (found == 0).any()


def test_it_ends_with_its_block(model):
    model.train()
    before = statistics(model)
    with frozen_batch_norm(model):
        model(IMAGES)
    model.train()
    model(IMAGES)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert not any(map(torch.equal, before, statistics(model)))


def test_it_ends_after_an_error_too(model):
    with pytest.raises(KeyError), frozen_batch_norm(model):
        raise KeyError
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("mode", [True, False])
def test_every_part_has_its_mode_again_after_the_block(model, mode):
    model.train(mode)
    before = [part.training for part in model.modules()]
    with frozen_batch_norm(model):
        model(IMAGES)
    assert [part.training for part in model.modules()] == before


def test_blocks_can_be_nested(model):
    before = statistics(model)
    with frozen_batch_norm(model):
        with frozen_batch_norm(model):
            model.train()
            model(IMAGES)
        model.train()
        model(IMAGES)
    assert all(map(torch.equal, before, statistics(model)))


def test_initial_statistics_are_refused():
    model = MODELS["2d"]()
    sentence = (
        r"needs statistics worth keeping, got all 2 batch norms as they are initialised\. Pass `freeze_batch_norm"
    )
    with pytest.raises(ValueError, match=sentence), frozen_batch_norm(model):
        pytest.fail("the block must not begin")
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_one_new_batch_norm_beside_a_pretrained_one_is_fine():
    model = MODELS["2d"]().train()
    model[1].running_mean.normal_()
    with frozen_batch_norm(model):
        model(IMAGES)
    assert not model[3].running_mean.any()


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4)),
        nn.BatchNorm1d(4, track_running_stats=False),
    ],
)
def test_a_model_without_statistics_is_fine(model):
    expected = model.train()(torch.eye(4))
    with frozen_batch_norm(model):
        assert torch.equal(model(torch.eye(4)), expected)
