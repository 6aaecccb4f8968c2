"""The notebooks run from the first cell to the last, with few images and for few steps."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

NOTEBOOKS = {path.stem: path for path in (Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb")}
SHORTER = {
    "first_steps": {
        "range(3000)": "range(600)",
        "300)]": "60)]",
        "range(1000)": "range(200)",
        "STEPS = 300": "STEPS = 8",
    }
    | {"labels[:1000]": "labels[:200]", "range(0, 1000, 200)": "range(0, 200, 40)", "range(0, 3000,": "range(0, 600,"},
    "your_own_folder": {"image_size=128": "image_size=32", "images[:400]": "images[:100]"}
    | {"max_steps=40": "max_steps=2", "relabel_every=20": "relabel_every=1"},
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_pictures(name, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone is part of udmlss[demo]")
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    plt.close("all")
    cells = json.loads(NOTEBOOKS[name].read_text())["cells"]
    install, *programs = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert install == '%pip install "udmlss[demo]"'
    text = "\0".join(programs)
    for long, short in SHORTER[name].items():
        assert long in text
        text = text.replace(long, short)
    namespace = {"__name__": "__main__"}
    for number, program in enumerate(text.split("\0")):
        exec(compile(program, f"{name}, program {number}", "exec"), namespace)  # noqa: S102 (our own notebooks)
    figures = list(map(plt.figure, plt.get_fignums()))
    assert len(figures) >= 4
    assert all(axis.images for figure in figures for axis in figure.axes)
    plt.close("all")
    assert namespace["result"].stop_reason == "max_steps"
    assert not all((namespace["before"] == namespace["after"]).flatten())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs(name):
    notebook = json.loads(NOTEBOOKS[name].read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
