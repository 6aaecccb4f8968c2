"""Compare methods on five datasets: birds, groceries, plankton, logos and characters.

    python benchmarks/five_sets.py --minutes 55
    python benchmarks/five_sets.py --data cub100,glyphs --seeds 1

The missing runs of benchmarks/quality.py are made in the order of importance, so that the command can be ended at any
time and repeated later. With `--minutes 0` it only writes the tables. Further options change settings of all datasets.

The protocol `unseen` scores classes that training did not see. The protocol `own` trains without labels on the very
images that are scored.
"""

import argparse
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from markdown_tables import markdown_table
from quality import tabulate
from runs import Run, ensure, read
from settings import PHOTO_SETS, ROOT, Settings, build_parser, folder_name, parse
from setups import Data, open_data
from tables import NEIGHBORS, SCORED, Row

SETS = (*PHOTO_SETS, "glyphs")
FIRST = ("frozen", "frozen-from-features", "default", "recommended-true-k", "supervised-default")
SECOND = ("udml-true-k", "recommended-twice-k", "udml-ss-true-k", "instance")
OWN = ("frozen", "frozen-from-features", "default", "recommended-true-k")
START, UPPER = "frozen", "supervised-default"
TITLES = {
    "frozen": "frozen",
    "frozen-from-features": "frozen, embedder from features",
    "frozen-ignore-colors": "frozen, embedder from features, without colors",
    "frozen-ignore-orientation": "frozen, embedder from features, without orientation",
    "frozen-flips": "frozen, embedder from features, averages with mirror images",
    "instance": "each image is a class",
    "udml-true-k": "UDML, true k",
    "udml-ss-true-k": "UDML-SS, true k",
    "recommended-true-k": "recommended, true k",
    "recommended-twice-k": "recommended, twice the true k",
    "default": "default, no k",
    "default-keep-colors": "default with colors, no k",
    "default-ignore-orientation": "default without orientation, no k",
    "default-flips": "default, averages with mirror images, no k",
    "supervised-default": "default with true labels, embedder as trained",
    "supervised-default-ignore-orientation": "default without orientation, with true labels, embedder as trained",
}
START_OUTPUTS = {  # by output, the output of the frozen model with which it is compared
    "embeddings": "features",
    "embeddings as trained": "features",
    "features": "features",
    "embeddings with neighbors": "features with neighbors",
    "features with neighbors": "features with neighbors",
    "embeddings, expanded": "features",
    "embeddings, re-ranked": "features",
}
OUTPUTS = tuple(START_OUTPUTS)
MEASURES = ("R@1", "MAP@R")
Rows = Mapping[str, Mapping[tuple[str, str], Row]]  # by dataset, and by method and output


def plan(seeds: int) -> Iterator[tuple[str, str, int]]:
    """Yield protocol, method and seed, the most important first; each is run on all datasets."""
    for seed in range(seeds):
        for protocol, methods in (("unseen", FIRST), ("own", OWN), ("unseen", SECOND)):
            yield from ((protocol, method, seed) for method in methods)


def markdown(rows: Rows, output: str) -> str:
    """Return R@1 and MAP@R of an output by method and dataset, and the fraction of the gain of true labels."""
    titles = ["", *rows, *(f"fraction of the gain of true labels, {measure}" for measure in MEASURES)]
    lines = []
    for method, title in TITLES.items():
        found = {data: of_set[method, output] for data, of_set in rows.items() if (method, output) in of_set}
        if found:
            cells = [_cell(found[data]) if data in found else "" for data in rows]
            fractions = [_fraction_of_gain(rows, method, output, measure) for measure in MEASURES]
            lines.append([title, *cells, *fractions])
    return markdown_table(titles, lines)


def _cell(row: Row) -> str:
    values = [f"{100 * row.mean[measure]:.1f}" for measure in MEASURES]
    if row.spread:
        deviations = [f"{100 * row.spread[measure]:.1f}" for measure in MEASURES]
        values = [" ± ".join(pair) for pair in zip(values, deviations, strict=True)]
    return ", ".join(values)


def _fraction_of_gain(rows: Rows, method: str, output: str, measure: str) -> str:
    """Return the gain over the frozen features as a fraction of the gain of true labels, over all datasets.

    It is empty if a dataset lacks one of the three scores, or if true labels do not gain.
    """
    fractions = []
    for of_set in rows.values():
        keys = ((START, START_OUTPUTS[output]), (method, output), (UPPER, output))
        if not of_set.keys() >= set(keys):
            return ""
        low, found, high = (of_set[key].mean[measure] for key in keys)
        if high <= low:
            return ""
        fractions.append((found - low) / (high - low))
    return f"{fmean(fractions):.0%} ({min(fractions):.0%})"


def cluster_counts(runs: Sequence[Run]) -> str:
    """Return the mean number of clusters of the last round of `default`, and the true number of classes."""
    found = [run for run in runs if run["method"] == "default"]
    if not found:
        return ""
    return f"{fmean(run['history'][-1]['n_clusters'] for run in found):.0f} / {found[0]['n_classes']}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated datasets (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0")
    parser.add_argument("--minutes", type=float, help="time after which no run is started (default: no limit)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of the folders of runs")
    args, options = parser.parse_known_args(arguments)
    sets = args.data.split(",")
    if unknown := [data for data in sets if data not in SETS]:
        parser.error(f"--data must be among {', '.join(SETS)}, got {', '.join(unknown)}")
    given = {
        (data, protocol): parse(build_parser(__doc__), ["--data", data, "--protocol", protocol, *options])
        for protocol in SCORED
        for data in sets
    }
    settings = {key: found for key, (_, found) in given.items()}
    folders = {key: args.out / folder_name(found) for key, found in settings.items()}
    for key, folder in folders.items():
        read(folder, settings[key])  # ends the program if there are runs with other settings, before any work

    @cache
    def open_set(data: str, protocol: str) -> Data:
        return open_data(settings[data, protocol], given[data, protocol][0].root)

    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    for protocol, method, seed in plan(args.seeds):
        for data in sets:
            if end is not None and time.monotonic() >= end:
                break
            ensure(folders[data, protocol], method, seed, settings[data, protocol], open_set(data, protocol))
    command = shlex.join([*(["--data", args.data] if args.data != ",".join(SETS) else []), *options])
    save(args.out / "five-sets.md", sets, settings, folders, f"python benchmarks/five_sets.py {command}".strip())


def save(
    path: Path,
    sets: Sequence[str],
    settings: Mapping[tuple[str, str], Settings],
    folders: Mapping[tuple[str, str], Path],
    command: str,
) -> None:
    """Write the tables of all datasets, and the table of the comparison."""
    text = ["# Comparison on five datasets"]
    for protocol, scored in SCORED.items():
        runs = {data: read(folders[data, protocol], settings[data, protocol]) for data in sets}
        rows = {
            data: {(row.name, row.output): row for row in tabulate(folders[data, protocol], settings[data, protocol])}
            for data in sets
            if runs[data]
        }
        if not rows:
            continue
        text += [f"## `{protocol}`: {scored}"]
        measured = {output for of_set in rows.values() for _, output in of_set}
        listed = [output for output in OUTPUTS if output in measured]
        text += [f"{output[0].upper()}{output[1:]}:\n\n{markdown(rows, output)}" for output in listed]
        counts = [f"{data} {found}" for data in sets if (found := cluster_counts(runs[data]))]
        text += [f"Clusters of `default` in the last round / classes: {', '.join(counts)}."] if counts else []
    legend = [
        f"R@1 and MAP@R in percent, mean ± standard deviation over seeds. {NEIGHBORS}\n",
        "fraction of the gain of true labels: gain over the features of `frozen`, divided by the gain of",
        "`supervised-default` over them. It is the mean over the datasets, with the lowest in brackets, and empty if a",
        "method did not run on all datasets. Scores with expansion or re-ranking are compared with the features",
        "without them. All scores are in the tables of the datasets.",
        "`default` trains for eight epochs, but at least 250 steps, with and without true labels. The other methods",
        "train for 150 steps, and for 602 on glyphs.",
    ]
    text += ["\n".join(legend), f"```\n{command}\n```"]
    path.write_text("\n\n".join(text) + "\n")
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
