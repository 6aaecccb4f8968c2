"""The command `python -m udmlss.data`, which unpacks and verifies a published dataset."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from udmlss._checks import value_error
from udmlss.data.archives import check_md5, unpack
from udmlss.data.image_files import ImageFiles
from udmlss.data.published.cars196 import CARS196, cars196
from udmlss.data.published.cub200 import CUB200, cub200
from udmlss.data.published.inshop import INSHOP, inshop
from udmlss.data.published.layout import PublishedDataset
from udmlss.data.published.sop import SOP, sop
from udmlss.data.published.verification import Report, verify

_DATASETS: Mapping[str, tuple[PublishedDataset, Callable[..., ImageFiles]]] = {
    dataset.name: (dataset, open_split)
    for dataset, open_split in ((CUB200, cub200), (CARS196, cars196), (SOP, sop), (INSHOP, inshop))
}
_MAX_LINES = 10  # printed of the facts, and of the problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Arguments of the command. None takes them from `sys.argv`.

    Returns:
        The exit status: 0 if there are no problems, 1 if there are.
    """
    args = _parse(arguments)
    try:
        if args.unpack:
            _unpack(_DATASETS[args.name][0], args.root)
        report = _verify(args)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)  # noqa: T201 (a command prints)
        return 1
    print("\n".join(_format(report)))  # noqa: T201 (a command prints)
    return 1 if report.problems else 0


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser("python -m udmlss.data", description="Verify a copy of a published dataset.")
    parser.add_argument("name", choices=[*_DATASETS], help="the dataset")
    parser.add_argument("root", type=Path, help="the folder that contains the dataset or its archive")
    parser.add_argument("--unpack", action="store_true", help="check and unpack the archive first")
    parser.add_argument("--quick", action="store_true", help="do not read the images, only check that they exist")
    args = parser.parse_args(arguments)
    args.root = args.root.expanduser()
    if not args.root.is_dir():
        parser.error(f"{args.root} is not a folder")
    return args


def _unpack(dataset: PublishedDataset, root: Path) -> None:
    archive = dataset.find_archive(root)
    if archive is None:
        rule = f"`--unpack` requires {' or '.join(dataset.archives)} in {root}"
        raise value_error(rule, "none", "Download it, or omit `--unpack`")
    for name, md5 in dataset.md5.items():
        if archive.with_name(name).is_file():
            check_md5(archive.with_name(name), md5)
    unpack(archive, archive.parent)


def _verify(args: Namespace) -> Report:
    dataset, open_split = _DATASETS[args.name]
    splits = {split: partial(open_split, args.root, split) for split in dataset.splits}
    return verify(splits, dataset.splits, quick=args.quick)


def _format(report: Report) -> list[str]:
    count = len(report.problems)
    summary = f"{count} problem{'s' * (count > 1)} found." if count else "No problems found."
    return [*_shorten(report.facts), *_shorten(report.problems), summary]


def _shorten(lines: Sequence[str]) -> list[str]:
    n_more = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], *[f"... and {n_more} more"] * (n_more > 0)]


if __name__ == "__main__":
    sys.exit(main())
