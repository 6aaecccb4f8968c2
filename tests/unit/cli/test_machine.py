"""What the command chooses for a machine."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from udmlss.cli import machine
from udmlss.cli.machine import Machine


def test_a_device_that_the_machine_has_not_is_an_error():
    assert machine.choose_device("cpu").type == "cpu"
    for device in ("cuda:99", "toaster"):
        with pytest.raises(ValueError, match=r"`device` must be a device of this machine, got "):
            machine.choose_device(device)


def test_a_gpu_is_chosen_if_there_is_one_and_full_precision_otherwise(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert Machine.choose(None, image_size=32).device.type == "cpu"
    assert Machine.choose(None, image_size=32).precision == "float32"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for supported, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, found=supported: found)
        assert Machine.choose(None, image_size=32).precision == precision
        assert Machine.choose(None, image_size=32, precision="float32").precision == "float32"


@pytest.mark.parametrize(
    ("cores", "free_batches", "expected"), [(1, 99, 0), (2, 99, 2), (8, 99, 8), (64, 99, 16), (8, 10, 3), (8, 2, 0)]
)
def test_there_is_a_worker_per_core_as_far_as_batches_fit_into_shared_memory(
    cores, free_batches, expected, monkeypatch, tmp_path
):
    free = free_batches * 128 * 3 * 32 * 32 * 4
    monkeypatch.setattr(machine, "_count_cores", lambda: cores)
    monkeypatch.setattr(machine, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(machine, "disk_usage", lambda _folder: SimpleNamespace(free=free))
    assert Machine.choose("cpu", image_size=32).num_workers == expected
    assert Machine.choose("cpu", image_size=32, workers=5).num_workers == 5


def test_convolutions_are_placed_in_channels_last():
    layer = Machine.choose("cpu", image_size=32).place(nn.Conv2d(4, 4, 3))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
