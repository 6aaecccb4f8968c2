"""A program of two processes that runs the examples for several processes: `python examples_program.py FOLDER`."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import udmlss.data

ROOT = Path(__file__).parents[2]
SMALL = """
    --backbone efficientnet-lite0 --image-size 64 --n-clusters 6 --clusters-per-batch 4 --samples-per-cluster 2
    --rotation-images 4 --relabel-every 2 --from-features --checkpoint run
"""


def few_glyphs(whole):
    """Return a function that opens the first images of a split of glyphs."""

    def open_few(split, *, transform=None):
        images, n = whole[split], 600 if split == "train" else 200
        few = replace(images, images=images.images[:n], labels=images.labels[:n], face_of=images.face_of[:n])
        return replace(few, transform=transform)

    return open_few


def main():
    """Train a checkpointed run for two steps, resume it for a third one, and train with Lightning."""
    sys.path.insert(0, str(ROOT / "examples"))
    import cub_resnet50  # noqa: PLC0415 (after the change of the path)

    for steps in ("2", "3"):
        cub_resnet50.main([sys.argv[1], *SMALL.split(), "--steps", steps])
    udmlss.data.glyphs = few_glyphs({split: udmlss.data.glyphs(split) for split in ("train", "test")})
    os.environ["TORCHELASTIC_RUN_ID"] = "0"  # makes Lightning use the processes that run already
    import lightning_module  # noqa: PLC0415 (after `glyphs` was replaced)

    sys.argv[1:] = ["--rounds", "2", "--steps", "2", "--devices", "2"]
    lightning_module.main()


if __name__ == "__main__":
    main()
