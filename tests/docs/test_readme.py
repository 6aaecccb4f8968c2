import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

import udmlss
from udmlss import metrics
from udmlss.models import load_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROGRAM = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
DIFF = re.search(r"```diff\n(.*?)```", README, flags=re.DOTALL)[1]


@pytest.fixture
def photos(tmp_path):
    """A folder of 40 images: 4 noisy images of each of 10 random patterns."""
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        if number % 4 == 0:
            pattern = torch.rand(3, 5, 5, generator=generator).repeat_interleave(24, 1).repeat_interleave(24, 2)
        noisy = 0.9 * pattern + 0.1 * torch.rand(3, 120, 120, generator=generator)
        to_pil_image(noisy).save(tmp_path / "photos" / f"{number:02}.png")
    to_pil_image(noisy).save(tmp_path / "new.jpg")
    return tmp_path


def test_the_program_of_the_readme_runs_as_printed(photos, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the backbone is part of udmlss[lite]")
    monkeypatch.chdir(photos)
    monkeypatch.setattr(udmlss, "fit", partial(udmlss.fit, max_steps=4, relabel_every=1))  # instead of 250 steps
    names = {"__name__": "__main__"}
    exec(compile(PROGRAM, "README.md", "exec"), names)  # noqa: S102 (our own file)
    assert "FitResult(4 rounds, 4 steps" in capsys.readouterr().out
    stems = [Path(path).stem for path in names["found"][0]]
    assert stems[0] == "39"
    embeddings = names["embed"](names["model"], names["images"])
    assert metrics.map_at_r(embeddings, torch.arange(40) // 4) > 0.9
    loaded, backbone = load_model(photos / "model")
    assert backbone.image_size == 112
    assert all(map(torch.equal, loaded.state_dict().values(), names["model"].state_dict().values()))


def test_the_training_loop_of_the_readme_is_that_of_the_example():
    added = [line[1:].strip() for line in DIFF.splitlines() if not line.startswith("-")]
    example = [line.strip() for line in (ROOT / "examples" / "own_loop.py").read_text().splitlines()]
    positions = [example.index(line) for line in added]
    assert positions == sorted(positions)


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_every_file_that_the_readme_names_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    programs = re.findall(r"python ((?:examples|benchmarks)/\S+\.py)", README)
    assert links
    assert not [name for name in links + programs if not (ROOT / name).exists()]
