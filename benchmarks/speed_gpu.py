"""Time on a GPU: `fit` and a bare loop, faster settings of `fit`, clustering and search, and loading of pictures."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speed_communities import unequal_classes
from speed_fit import Speedups, compare_speedups, compare_with_bare_loop
from speed_measurements import Row, Sizes, measure_alternately, seconds
from speed_pictures import find_or_make_pictures
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2

from udmlss import ClusterPseudoLabeler, EmbeddingModel, embed
from udmlss.data import ImageFiles
from udmlss.neighbors import nearest

NEIGHBORS = 10
PIXELS = 224


def lines_of_gpu(sizes: Sizes, device: str = "cuda") -> list[Row]:
    """Compare `fit` in float32 with a bare loop."""
    if _is_missing(device):
        return [Row("gpu", "`fit` on a GPU", "a bare loop", [], [], aim=1.03, note="needs a GPU")]
    return [compare_with_bare_loop(sizes, "gpu", "on the GPU", device)]


def lines_of_compiled_gpu(sizes: Sizes, device: str = "cuda") -> list[Row]:
    """Compare faster settings of `fit` with a bare loop with these settings, and with `fit` without them."""
    line, where = "gpu-compiled", "on the GPU with bfloat16, channels-last and a compiled trunk"
    if _is_missing(device):
        return [Row(line, f"`fit` {where}", "a bare loop", [], [], aim=1.03, note="needs a GPU")]
    fast = Speedups(compiled=True, bfloat16=True, channels_last=True)
    return [
        compare_with_bare_loop(sizes, line, where, device, fast),
        compare_speedups(sizes, line, where, device, fast),
    ]


def lines_of_gpu_clustering(sizes: Sizes, device: str = "cuda") -> list[Row]:
    """Compare clustering and search on the device with the CPU, once each, after a warm-up on the device."""
    line, baseline = "gpu-clustering", "the same on the CPU"
    if _is_missing(device):
        return [Row(line, "clustering and search on a GPU", baseline, [], [], aim=1.0, note="needs a GPU")]
    n, d = sizes.gpu_rows
    rows, k = unequal_classes(n, d), max(2, n // 60)
    functions = {
        f"k-means with {k:,} clusters": lambda where: ClusterPseudoLabeler(k, device=where).label(rows),
        "communities": lambda where: ClusterPseudoLabeler(device=where).label(rows),
        f"lists of {NEIGHBORS} neighbors": lambda where: nearest(rows.to(where), NEIGHBORS)[1].cpu(),
    }
    note, found = f"{n:,} x {d}, {torch.get_num_threads()} threads of the CPU", []
    for name, function in functions.items():
        function(device)
        ours, theirs = seconds(partial(function, device)), seconds(partial(function, "cpu"))
        found.append(Row(line, f"{name} on the GPU", baseline, [ours], [theirs], aim=1.0, note=note))
    return found


def lines_of_gpu_loader(sizes: Sizes, device: str = "cuda") -> list[Row]:
    """Compare embedding passes over pictures with the default number of workers and without workers."""
    line, measured, baseline = "gpu-loader", "`embed` with the default workers", "without workers"
    if _is_missing(device):
        return [Row(line, measured, baseline, [], [], aim=1.0, note="needs a GPU")]
    trunk = nn.Sequential(mobilenet_v2().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EmbeddingModel(trunk, nn.Identity()).to(device, memory_format=torch.channels_last)
    transform = v2.Compose([v2.Resize(PIXELS), v2.CenterCrop(PIXELS), v2.PILToTensor(), _as_float])
    with TemporaryDirectory() as made:
        pictures = ImageFiles(find_or_make_pictures(sizes, Path(made)), transform=transform)
        passes = [partial(embed, model, pictures, num_workers=n, precision="bfloat16") for n in (None, 0)]
        ours, theirs = measure_alternately(sizes.command_pairs, *(partial(seconds, each) for each in passes))
    note = f"MobileNetV2, {len(pictures)} pictures, cropped to {PIXELS} pixels, bfloat16, channels-last"
    return [Row(line, measured, baseline, ours, theirs, aim=1.0, note=note)]


def _is_missing(device: str) -> bool:
    return device == "cuda" and not torch.cuda.is_available()


def _as_float(image: Tensor) -> Tensor:
    return image.float().div_(255)
