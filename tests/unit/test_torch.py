from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision.models import mnasnet0_5

from udmlss._torch import (
    check_weights,
    device_of,
    evaluation_mode,
    is_channels_last,
    load_plain_state_dict,
    plain_state_dict,
    restore_modes,
    to_device,
    to_dtype,
)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: nn.Conv2d(3, 4, 3), True),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), False),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4)), False),  # the formats do not differ
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3), nn.Flatten()), True),
        (nn.Flatten, False),
    ],
)
def test_the_memory_format_is_that_of_the_convolutions(model, expected):
    model = model()
    images = torch.rand(2, 3, 5, 5)
    assert not is_channels_last(model)
    assert to_device(images, model).is_contiguous()
    model.to(memory_format=torch.channels_last)
    assert is_channels_last(model) == expected
    found = to_device(images, model)
    assert found.is_contiguous(memory_format=torch.channels_last) == expected
    assert torch.equal(found, images)


def test_images_keep_their_format_for_a_model_in_the_standard_format():
    images = torch.rand(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert to_device(images, nn.Conv2d(3, 4, 3)).is_contiguous(memory_format=torch.channels_last)


def test_images_move_to_the_device_of_the_model():
    model = nn.Linear(2, 2, device="meta")
    assert device_of(model) == to_device(torch.rand(2, 3, 5, 5), model).device == torch.device("meta")
    assert device_of(nn.Flatten()) == torch.device("cpu")


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("expected", DTYPES)
def test_images_and_rows_get_the_data_type_of_the_parameters(given, expected):
    model = nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 2)).to(expected)
    images = torch.rand(2, 3, 5, 5).to(given)
    assert torch.equal(to_device(images, model), images.to(expected))
    assert to_dtype(images.flatten(1), model).dtype == expected
    assert to_dtype(images.flatten(1), nn.Flatten()).dtype == to_device(images, nn.Flatten()).dtype == given


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)])
def test_autocast_converts_rows_itself_except_to_float64(dtype, expected):
    layer, rows = nn.Linear(3, 2).to(dtype), torch.rand(4, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(to_dtype(rows, layer)).dtype == expected


def test_data_type_is_that_of_the_first_floating_point_parameter():
    quantized = nn.Module()
    quantized.weight = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    quantized.scale = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    assert to_dtype(torch.rand(2, 2), quantized).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(2, 2, device="meta"), r"parameters with values, got 1\.weight on the meta device\. Call .*to_empty"),
        (nn.LazyLinear(2), r"initialized parameters, got the lazy parameter 1\.weight\. Call the model on one batch"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_rejects_parameters_without_values(layer, message):
    check_weights(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=message):
        check_weights(nn.Sequential(nn.Linear(2, 2), layer))


@pytest.mark.parametrize("error", [None, KeyError])
def test_evaluation_mode_restores_the_mode_of_every_submodule(error):
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Dropout().eval()), nn.Dropout())
    before = [part.training for part in model.modules()]
    with pytest.raises(error) if error else nullcontext(), evaluation_mode(model):
        assert not any(part.training for part in model.modules())
        if error:
            raise error
    assert [part.training for part in model.modules()] == before


def test_restore_modes_restores_several_modules():
    model, head = nn.Sequential(nn.Dropout()), nn.Linear(2, 2).eval()
    with restore_modes(model, head):
        model.eval()
        head.train()
    assert all(part.training for part in model.modules())
    assert not head.training


def test_a_state_is_loaded_into_a_module_that_depends_on_the_version_of_a_state():
    source, target = mnasnet0_5(num_classes=2), mnasnet0_5(num_classes=2)
    load_plain_state_dict(torch.compile(target), plain_state_dict(source))
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name])
