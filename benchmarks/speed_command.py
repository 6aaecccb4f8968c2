"""Time of the training of the command `udmlss train`, with its defaults and without them."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from speed_measurements import Row, Sizes, cost_in_process
from speed_pictures import find_or_make_pictures

from udmlss import cli, keep_freed_memory
from udmlss.cli import training
from udmlss.cli.machine import Machine


def lines_of_command(sizes: Sizes) -> list[Row]:
    """Compare trainings of pictures in files, each in a new process, whose allocator the settings change."""
    fast: list[float] = []
    plain: list[float] = []
    with TemporaryDirectory() as made:
        paths = find_or_make_pictures(sizes, Path(made) / "pictures")
        listed = Path(made) / "pictures.txt"
        listed.write_text("".join(f"{path.absolute()}\n" for path in paths))
        for pair in range(sizes.command_pairs):
            for number in (1, 0) if pair % 2 else (0, 1):
                times, defaults = ((fast, True), (plain, False))[number]
                out = Path(made) / f"run-{pair}-{number}"
                times.append(cost_in_process(prepare_command, sizes, listed, out, defaults).seconds)
    note = f"{len(paths)} pictures, {sizes.command_pixels} pixels, {sizes.command_epochs} epochs, without the report"
    measured, baseline = "`udmlss train`", "without workers, channels-last and settings of the allocator"
    return [Row("command", measured, baseline, fast, plain, aim=0.56, note=note)]


def prepare_command(
    sizes: Sizes,
    pictures: Path,
    out: Path,
    defaults: bool,  # noqa: FBT001 (an argument of a process)
) -> Callable[[], None]:
    """Return a function that trains with the defaults of the command, or without those that make it faster."""
    if defaults:
        keep_freed_memory()
    return partial(train, sizes, pictures, out, defaults=defaults)


def train(sizes: Sizes, pictures: Path, out: Path, *, defaults: bool) -> None:
    settings = {"image_size": sizes.command_pixels, "epochs": sizes.command_epochs, "device": "cpu", "progress": False}
    with ExitStack() as stack:
        stack.enter_context(patch.object(training, "_write_report"))
        if not defaults:
            settings["workers"] = 0
            stack.enter_context(patch.object(Machine, "place", lambda machine, module: module.to(machine.device)))
        cli.train(pictures, out=out, **settings)
