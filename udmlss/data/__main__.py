"""Check a copy of a data set, and unpack it first if asked: `python -m udmlss.data cub200 ROOT --unpack`."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from udmlss._checks import value_error
from udmlss.data.archive import check_md5, unpack
from udmlss.data.cars196 import cars196
from udmlss.data.catalog import CARS196, CUB200, INSHOP, SOP, Published
from udmlss.data.cub200 import cub200
from udmlss.data.image_files import ImageFiles
from udmlss.data.image_folder import image_folder
from udmlss.data.inshop import inshop
from udmlss.data.sop import sop
from udmlss.data.verify import Report, verify

_OPENERS: Mapping[str, tuple[Callable[..., ImageFiles], Published]] = {
    published.name: (opener, published)
    for opener, published in ((cub200, CUB200), (cars196, CARS196), (sop, SOP), (inshop, INSHOP))
}
_SHOWN = 10  # lines of a kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all is well, 1 if something is wrong with the data."""
    args = _parse(arguments)
    try:
        if args.unpack:
            _unpack(_OPENERS[args.name][1], args.root)
        report = _verify(args)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)  # noqa: T201 (a command prints)
        return 1
    print("\n".join(_lines(report)))  # noqa: T201 (a command prints)
    return 1 if report.problems else 0


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        "python -m udmlss.data", description="Check a copy of a data set against the published one."
    )
    parser.add_argument("name", choices=[*_OPENERS, "folder"], help="folder: pictures of your own")
    parser.add_argument("root", type=Path, help="the folder that holds it, or its archive")
    parser.add_argument("--unpack", action="store_true", help="unpack the archive first, checked where it can be")
    parser.add_argument("--quick", action="store_true", help="do not read the pictures, only see that they are there")
    args = parser.parse_args(arguments)
    args.root = args.root.expanduser()
    if not args.root.is_dir():
        parser.error(f"{args.root} is no folder")
    if args.unpack and args.name == "folder":
        parser.error("--unpack is for data sets with a published archive; unpack your own first")
    return args


def _unpack(published: Published, root: Path) -> None:
    archive = published.archive_in(root)
    if archive is None:
        wanted = " or ".join(published.archives)
        raise value_error(f"`--unpack` needs {wanted} in {root}", "none", "Download it, or leave `--unpack` out")
    for name, md5 in published.md5.items():
        if archive.with_name(name).is_file():
            check_md5(archive.with_name(name), md5)
    unpack(archive, archive.parent)


def _verify(args: Namespace) -> Report:
    if args.name == "folder":
        return verify({"folder": partial(image_folder, args.root)}, {}, quick=args.quick)
    opener, published = _OPENERS[args.name]
    openers = {split: partial(opener, args.root, split) for split in published.splits}
    return verify(openers, published.splits, quick=args.quick)


def _lines(report: Report) -> list[str]:
    count = len(report.problems)
    verdict = f"{count} problem{'s' * (count > 1)}." if count else "All is well."
    return [*_few(report.facts), *_few(report.problems), verdict]


def _few(lines: Sequence[str]) -> list[str]:
    left = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *[f"... and {left} more"] * (left > 0)]


if __name__ == "__main__":
    sys.exit(main())
