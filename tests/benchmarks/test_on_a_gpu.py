"""Methods and the GPU line of speed.py, on a pretended GPU that checks the devices of tensors, and on_a_gpu.sh."""

import subprocess
from pathlib import Path

import methods
import pytest
import setups
import speed_fit
from pretended_gpu import pretended_gpu
from speed import QUICK

SCRIPT = Path(setups.__file__).with_name("on_a_gpu.sh")
METHODS = (  # the others differ from these in k, or combine their settings
    *("instance", "cbswr", "stml", "deepcluster", "cluster-contrast", "spcl", "udml-ss-ranking", "udml-ss-synthesis"),
    *("recommended", "default-coarse-left-out", "supervised"),
)


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu(monkeypatch) as device:
        yield device


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_on_the_gpu(gpu, flowers, settings_of, name):
    settings = settings_of()
    model = setups.build_model(settings, seed=0).to(gpu)
    before = [each.detach().cpu().clone() for each in model.parameters()]
    methods.METHODS[name](model, setups.open_data(settings, flowers), settings, 0)
    after = [each.detach().cpu() for each in model.parameters()]
    assert all(each.device.type == gpu.type for each in model.parameters())
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


def test_bare_loop_and_fit_train_on_the_gpu(gpu):
    row = speed_fit.compare_with_bare_loop(QUICK, "gpu", "on a GPU", str(gpu))
    assert len(row.ours) == len(row.theirs) == QUICK.pairs


def run(command, python):
    environment = {"PYTHON": python, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.mark.parametrize(
    ("stages", "expected"), [([], ["tests", "speed", "quality"]), (["quality", "tests"], ["tests", "quality"])]
)
@pytest.mark.parametrize(("python", "code"), [("echo", 0), ("false", 1)])
def test_script_runs_the_stages_and_reports_failures(tmp_path, stages, expected, python, code):
    command = ["bash", str(SCRIPT), str(tmp_path), *stages]
    done = run(command, python)
    assert done.returncode == code, done.stderr
    started = [line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert started == [stage for stage in expected for _ in ("command", "exit code")]
    assert {path.stem for path in tmp_path.glob("*.log")} == set(expected)
    assert (tmp_path / "speed/table.json").exists() == ("speed" in expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["speed"], "must be the output folder, got the stage speed."),
        (["{out}", "qualty"], "must be among tests speed quality, got qualty."),
    ],
)
def test_script_rejects_wrong_arguments_before_any_stage(tmp_path, arguments, sentence):
    out = tmp_path / "out"
    done = run(["bash", str(SCRIPT), *(argument.format(out=out) for argument in arguments)], "echo")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not done.stdout
    assert not out.exists()
