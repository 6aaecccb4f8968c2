import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # programs import each other from their folder

OPTIONS = """
    --backbone small --no-freeze-batch-norm --image-size 16 --embedding-size 8 --n-clusters 6 --steps 2
    --relabel-every 1 --clusters-per-batch 2 --samples-per-cluster 2 --rotation-images 2
"""


@pytest.fixture(scope="session")
def options():
    """What makes a run of a moment, from weights that nobody downloads."""
    return OPTIONS.split()


@pytest.fixture(scope="session")
def flowers(tmp_path_factory):
    """A folder per class: 8 classes, told apart by colour, of 6 pictures."""
    root = tmp_path_factory.mktemp("pictures") / "flowers"
    draws = torch.Generator().manual_seed(0)
    for name in "abcdefgh":
        (root / name).mkdir(parents=True)
        colour = torch.rand(3, 1, 1, generator=draws)
        for number in range(6):
            pixels = (colour * 200 + torch.rand(3, 20, 24, generator=draws) * 55).byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
    return root
