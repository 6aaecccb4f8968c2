import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from udmlss._torch import device_of, evaluation_mode, fork_torch_rng, is_channels_last, restore_modes, to_device
from udmlss._torch import seeded_generators as seeded

KEYS = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 0), (2**40, 1, 5)]


def sample():
    """Sample from the global generators of Python, NumPy and torch, as transforms do."""
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002, S311


def sample_seeded(key):
    with seeded(*key):
        return sample()


def test_the_same_key_gives_the_same_random_numbers():
    first = [sample_seeded(key) for key in KEYS]
    sample()
    assert [sample_seeded(key) for key in KEYS] == first


def test_different_keys_give_different_random_numbers_in_every_library():
    for numbers in zip(*map(sample_seeded, KEYS), strict=True):
        assert len(set(numbers)) == len(KEYS)


@pytest.mark.parametrize("context", [lambda: seeded(9), lambda: fork_torch_rng(9, torch.device("cpu"))])
@pytest.mark.parametrize("error", [None, KeyError])
def test_generator_states_are_restored(context, error):
    def sample_after(use_context):
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        if use_context:
            with pytest.raises(error) if error else nullcontext(), context():
                torch.rand(3)
                if error:
                    raise error
        return sample()

    assert sample_after(use_context=True) == sample_after(use_context=False)


def test_fork_torch_rng_seeds_the_block():
    with fork_torch_rng(3, torch.device("cpu")):
        found = torch.rand(4)
    assert torch.equal(found, torch.rand(4, generator=torch.Generator().manual_seed(3)))


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
