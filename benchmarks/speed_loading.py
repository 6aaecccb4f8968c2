"""Measure what loading an image costs, each line of the table as a ratio to a baseline.

    python benchmarks/speed_loading.py                      # processor time of generated pictures
    python benchmarks/speed_loading.py --photos ~/photos    # of your own, resized to the sizes of the table
    python benchmarks/speed_loading.py --quick              # sizes for a test, whose ratios have no meaning

The table is saved in benchmarks/results/loading. With --quick it is saved only if --out is given. The program reads
/proc, so it needs Linux.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from runs import versions
from settings import ROOT
from speed_measurements import CLOCK_VARIABLE, CLOCKS, Row, measure_alternately, seconds
from speed_tables import markdown
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from udmlss.backbones import Backbone, load_backbone
from udmlss.data import ImageFiles, find_images
from udmlss.image_loader import ImageLoader

KINDS = (("jpg", 500, 375), ("jpg", 1600, 1200), ("jpg", 4000, 3000), ("png", 500, 375))
QUICK_KINDS = (("jpg", 500, 375), ("png", 50, 40))
OCTAVES, DECAY = 10, 0.75  # of generated pictures; 12 megapixels then take about 3 MB, as those of a telephone
EXPLANATION = """
ratio: the measured value divided by that of the baseline, as the median of all pairs, with the lowest and the highest;
lower is better. Both are measured alternately. Values are per picture, for `efficientnet-lite0` at 160 pixels. The
baseline of "test" and "train" reads a picture by `Image.open(path).convert("RGB")` and transforms it as a PIL picture,
as `torchvision.datasets.ImageFolder` does. The notes compare with it: levels are differences of pixels 0..255 after the
transform, on average and at most, and cosine is the lowest similarity of the features. "path list": memory of a worker
process that is not shared, after it used every path.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of pictures (default: generated pictures)")
    parser.add_argument("--pictures", type=int, default=6, help="number of pictures of a size (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="number of measurements of a line (default: %(default)s)")
    parser.add_argument("--paths", type=int, default=1_000_000, help="length of the list (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="measure small sizes once")
    parser.add_argument("--out", type=Path, help="folder of the table")
    parser.add_argument("--clock", choices=CLOCKS, default="processor", help="of all lines but workers")
    args = parser.parse_args(arguments)
    os.environ[CLOCK_VARIABLE] = args.clock
    torch.set_num_threads(1)  # as in a worker process
    if args.quick:
        args.pictures, args.pairs, args.paths = 2, 1, 2000
    rows = []
    backbone = load_backbone("efficientnet-lite0", image_size=160)
    with tempfile.TemporaryDirectory() as folder:
        for kind in QUICK_KINDS if args.quick else KINDS:
            paths = write_pictures(Path(folder), kind, args.pictures, args.photos)
            rows += rows_of_pictures(f"{kind[1]} x {kind[2]} {kind[0]}", paths, backbone, args.pairs)
            print(markdown(rows[-3:]), flush=True)
        rows += [row_of_workers(paths, backbone, args.pairs), row_of_path_list(args.paths)]
    given = sys.argv[1:] if arguments is None else arguments
    source = ", ".join(f"{name} {value}" for name, value in versions().items())
    command = f"`{shlex.join(['python', 'benchmarks/speed_loading.py', *given])}` with {source}.\n"
    page = "\n".join([markdown(rows), EXPLANATION, command])
    print(page)
    out = args.out or (None if args.quick else ROOT / "benchmarks/results/loading")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(page)


def write_pictures(folder: Path, kind: tuple[str, int, int], number: int, photos: Path | None) -> list[Path]:
    """Write pictures of a format and size, and return their paths."""
    suffix, width, height = kind
    paths = [folder / f"{width}-{index}.{suffix}" for index in range(number)]
    sources = find_images(photos)[:number] if photos else []
    for index, path in enumerate(paths):
        if sources:
            picture = Image.open(sources[index % len(sources)]).convert("RGB").resize((width, height))
        else:
            picture = made_picture(width, height, index)
        picture.save(path, quality=90)
    return paths


def made_picture(width: int, height: int, seed: int) -> Image.Image:
    """Return a picture with structure of every size, as photographs have."""
    generator, pixels = torch.Generator().manual_seed(seed), torch.zeros(1, 3, height, width)
    for octave in range(OCTAVES):
        size = (2 + height // 2**octave, 2 + width // 2**octave)
        noise = torch.randn(1, 3, *size, generator=generator) * DECAY ** (OCTAVES - octave)
        pixels += functional.interpolate(noise, (height, width), mode="bilinear")
    return Image.fromarray((pixels * 80 + 128).clamp(0, 255).byte()[0].permute(1, 2, 0).contiguous().numpy())


def rows_of_pictures(name: str, paths: list[Path], backbone: Backbone, pairs: int) -> list[Row]:
    """Measure reading and transforming pictures of one size."""
    test, train = backbone.test_transform(), backbone.train_transform()
    steps, train_steps = ([*transform.transforms] for transform in (test, train))
    as_usual = v2.Compose([*steps[1:3], steps[0], *steps[3:]])  # ToImage after the steps that resize
    train_as_usual = v2.Compose([*train_steps[1:3], train_steps[0], *train_steps[3:]])
    whole, reduced = ImageFiles(paths, transform=test), ImageFiles(paths, transform=test, min_size=backbone.min_size)
    views = ImageFiles(paths, transform=train, min_size=backbone.min_size)
    usual, usual_views = Usual(paths, as_usual), Usual(paths, train_as_usual)
    baseline = f"PIL pictures, {name}"
    row = partial(compare, pairs=pairs)
    return [
        row("test", "`ImageFiles`", whole, baseline, usual, note=difference(whole, usual, backbone)),
        row("test", "with `min_size`", reduced, baseline, usual, note=difference(reduced, usual, backbone)),
        row("train", "with `min_size`", views, baseline, usual_views),
    ]


class Usual(Dataset[tuple[Tensor, int]]):
    """Pictures that are read and transformed in the usual way."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[object], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), -1


def compare(
    line: str, measured: str, ours: Dataset, baseline: str, theirs: Dataset, *, pairs: int, note: str = ""
) -> Row:
    """Compare the time of an item of two datasets."""
    times = measure_alternately(pairs, *(partial(milliseconds_per_item, each) for each in (ours, theirs)))
    return Row(line, measured, baseline, *times, unit="ms", note=note)


def milliseconds_per_item(images: Dataset) -> float:
    return 1000 * seconds(lambda: [images[index] for index in range(len(images))]) / len(images)


def difference(images: Dataset, exact: Dataset, backbone: Backbone) -> str:
    """Describe how pixels and features differ from those of the usual way."""
    first, second = (torch.stack([each[index][0] for index in range(len(each))]) for each in (images, exact))
    levels = (first - second).abs() * 255 * torch.tensor(backbone.std).view(3, 1, 1)
    trunk = backbone.trunk.eval()
    with torch.no_grad():
        cosines = functional.cosine_similarity(trunk(first), trunk(second))
    return f"levels {levels.mean():.3f} and {levels.max():.0f}, cosine {cosines.min():.4f}"


def row_of_workers(paths: list[Path], backbone: Backbone, pairs: int) -> Row:
    """Measure the first batch of workers that run, and of workers that are started for it."""
    images = ImageFiles(paths, transform=backbone.test_transform())
    with ImageLoader([images], 1) as loader:

        def batch() -> float:
            started = time.perf_counter()
            list(loader.batches(images, [[0]]))
            return 1000 * (time.perf_counter() - started)

        def restarted() -> float:
            loader.close()
            return batch()

        running, new = zip(*[(batch(), restarted()) for _ in range(pairs + 1)], strict=True)
    note = "wall time of the first image of a round"
    return Row("workers", "reused in every round", "started in every round", running[1:], new[1:], None, "ms", note)


class Touched(Dataset[float]):
    """A dataset whose item is the memory in MiB that a worker takes after it has used every path."""

    def __init__(self, paths: Sequence[object]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _index: int) -> float:
        before = private_memory()
        for index in range(len(self.paths)):
            Path(self.paths[index])
        return private_memory() - before


def row_of_path_list(n: int) -> Row:
    """Measure the memory of a worker, without the memory that it shares with the main process."""
    names = [f"/data/photos/folder{number // 1000:04d}/picture{number:08d}.jpg" for number in range(n)]
    ours, theirs = (
        [float(memory) for memory in DataLoader(Touched(paths), num_workers=1)]
        for paths in (ImageFiles(names).paths, names)
    )
    return Row("path list", f"`ImageFiles` of {n:,} paths", "a list of strings", ours, theirs, None, "MiB")


def private_memory() -> float:
    """Return the memory of this process in MiB that it shares with no other process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main()
