"""Every method and the GPU's line of speed.py, on a pretended GPU that checks where tensors are."""

import methods
import pytest
import quality
import setups
import speed_training
from pretended_gpu import pretended_gpu
from speed_sizes import QUICK


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu(monkeypatch) as device:
        yield device


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name != "frozen"])
def test_every_method_trains_there(gpu, flowers, options, name):
    _, settings = quality.parse(quality.build_parser(None), ["--data", str(flowers), *options])
    model = setups.build_model(settings, seed=0).to(gpu)
    before = [each.detach().cpu().clone() for each in model.parameters()]
    methods.METHODS[name](model, setups.open_data(settings, flowers), settings, 0)
    after = [each.detach().cpu() for each in model.parameters()]
    assert all(each.device.type == gpu.type for each in model.parameters())
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


def test_the_bare_loop_and_fit_train_there(gpu):
    row = speed_training._beside_bare_loop(QUICK, "gpu", "on a GPU", str(gpu))
    assert len(row.ours) == len(row.theirs) == QUICK.pairs
