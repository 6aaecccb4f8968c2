"""The command `udmlss`, whose subcommands are also functions."""

from udmlss.cli.command import main
from udmlss.cli.images import check, dataset
from udmlss.cli.outputs import embed, export, report
from udmlss.cli.queries import Neighbors, duplicates, search
from udmlss.cli.summary import TrainedRun
from udmlss.cli.training import train
from udmlss.data.published.verification import Verification

__all__ = [
    "Neighbors",
    "TrainedRun",
    "Verification",
    "check",
    "dataset",
    "duplicates",
    "embed",
    "export",
    "main",
    "report",
    "search",
    "train",
]
