"""Compare clusterers and their settings on features of untrained models, by the true classes.

    python benchmarks/clusterings.py
    python benchmarks/clusterings.py --data cub100,logos --cache /tmp/features

Nothing is trained. The features of the five datasets are computed once and cached in a folder; delete it if the images
or the settings change. The halves of the classes, and subsets with fewer images per class, are clustered. The tables
compare clusterers, rules for the length of the lists of neighbors, smallest sizes of communities, and measures of the
reliability of labels.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from clusterers import CLUSTERERS, available, measure
from clustering_tables import page
from frozen_features import SETS, cases, load_features
from settings import ROOT


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated datasets (default: all)")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the datasets")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "udmlss-features", help="folder of the features"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of clusterings.md")
    args = parser.parse_args(arguments)
    sets = args.data.split(",")
    if unknown := [data for data in sets if data not in SETS]:
        parser.error(f"--data must be among {', '.join(SETS)}, got {', '.join(unknown)}")
    if len(available()) < len(CLUSTERERS):
        print("The tables leave out Leiden, since scikit-network is not installed.")
    torch.set_num_threads(1)  # processor time then does not depend on the machine's number of cores
    features = {data: load_features(data, args.root, args.cache) for data in sets}
    started, measured = time.process_time(), []
    for case in cases(features):
        measured.append(measure(case))
        print(f"{case.data} {case.half} {case.subset}: {time.process_time() - started:.0f} s", flush=True)
    command = "python benchmarks/clusterings.py" + ("" if sets == [*SETS] else f" --data {args.data}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "clusterings.md"
    path.write_text(page(measured, command, time.process_time() - started))
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
