import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from udmlss import fit
from udmlss.training.rounds import MAX_STEPS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # the programs import each other

OPTIONS = """
    --backbone small --no-freeze-batch-norm --image-size 16 --embedding-size 8 --n-clusters 6 --steps 2
    --relabel-every 1 --clusters-per-batch 2 --samples-per-cluster 2 --rotation-images 2
"""


@pytest.fixture(scope="session", autouse=True)
def short_defaults():
    """Train for three rounds of a step instead of the default length of `fit`, which is hundreds of steps."""
    import training_functions  # noqa: PLC0415 (after the change of the path)

    def short_fit(*parts, max_steps, **options):
        return fit(*parts, max_steps=3 if max_steps == MAX_STEPS else max_steps, **{"relabel_every": 1} | options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_functions, "fit", short_fit)
        yield


@pytest.fixture(scope="session")
def options():
    """Options of a short run of a small network."""
    return OPTIONS.split()


@pytest.fixture(scope="session")
def flowers(tmp_path_factory):
    """A folder per class: 8 classes of 6 images, each class with a color."""
    root = tmp_path_factory.mktemp("pictures") / "flowers"
    generator = torch.Generator().manual_seed(0)
    for name in "abcdefgh":
        (root / name).mkdir(parents=True)
        color = torch.rand(3, 1, 1, generator=generator)
        for number in range(6):
            pixels = (color * 200 + torch.rand(3, 20, 24, generator=generator) * 55).byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def settings_of(flowers, options):
    """A function that returns the settings of a short run with further options."""
    import settings  # noqa: PLC0415 (after the change of the path)

    def parse(*more):
        return settings.parse(settings.build_parser(None), ["--data", str(flowers), *options, *more])[1]

    return parse
