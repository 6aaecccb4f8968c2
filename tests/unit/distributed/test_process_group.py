import pytest
import torch
from torch import distributed

from udmlss.distributed import process_group
from udmlss.distributed.process_group import to_backend


def test_every_rank_has_its_number_and_its_device(ranks):
    assert [found["ranks"] for found in ranks] == [(rank, len(ranks), rank == 0) for rank in range(len(ranks))]
    assert all(found["device"].type == ("cuda" if torch.cuda.is_available() else "cpu") for found in ranks)


def test_no_group_is_created_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as device:
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert not distributed.is_initialized()


def test_an_existing_group_is_used_and_not_destroyed(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with process_group():
            assert distributed.is_initialized()
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


def test_nccl_alone_sends_from_the_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.to("meta"))
    assert to_backend(torch.ones(2)).device.type == "meta"


@pytest.mark.parametrize("number", ["2", None])
def test_rejects_more_processes_than_gpus(monkeypatch, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": number}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    rule = "`LOCAL_RANK` must be the number of one of this machine's 2 GPUs, counted from 0"
    with pytest.raises(ValueError, match=f"{rule}, got {number or 'none'}. Start with"), process_group():
        pass
