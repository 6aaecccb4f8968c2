"""Choose the length of the lists of neighbors by short trainings, with one length each.

    python benchmarks/short_trainings.py --data groceries --validate

Each length trains a fresh model by `fit` for two epochs and is scored without labels. R@1 and MAP@R of classes that
training does not see show whether the length with the highest score is the best one. "rule" is the length that the
library chooses. The runs are saved and not repeated; the table lists all of them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from markdown_tables import markdown_table
from rounds import scores_of
from runs import Run, describe, read, write
from settings import Settings, build_parser, options_of, parse
from setups import Data, build_model, open_data
from training_functions import default

from udmlss.clustering import Communities
from udmlss.results import LabelFreeScores
from udmlss.types import Epochs

LENGTHS = (3, 6, 12, 24)
LENGTH_OF_TRAINING = Epochs(2)
TITLES = ("seed", "length", "clusters", "score without labels", "R@1", "MAP@R")


def train(length: int | None, seed: int, settings: Settings, data: Data) -> Run:
    """Train with a length of the lists, or with that of the library's rule, and score the model."""
    model = build_model(settings, seed)
    labeler = None if length is None else {"clusterer": Communities(length)}
    options = {"max_steps": LENGTH_OF_TRAINING, "ignore_colors": False, "label_free": True}
    result = default(model, data, settings, seed, labeler=labeler, **options)
    assert result.label_free is not None  # noqa: S101 (it was asked for)
    return describe("default-keep-colors", seed, settings, sum(report.seconds for report in result.history)) | {
        "length": length,
        "n_clusters": result.history[-1].n_clusters,
        "label_free": asdict(result.label_free),
        **scores_of(model, data),
    }


def markdown(runs: Sequence[Run]) -> str:
    return markdown_table(TITLES, [_cells(run) for run in runs])


def _cells(run: Run) -> tuple[str, ...]:
    percents = (f"{100 * run[measure]['embeddings']:.1f}" for measure in ("recall", "map_at_r"))
    score = LabelFreeScores(**run["label_free"]).score
    return (str(run["seed"]), str(run["length"] or "rule"), str(run["n_clusters"]), f"{score:.4f}", *percents)


def main(arguments: Sequence[str] | None = None) -> None:
    args, settings = parse(build_parser(__doc__), arguments)
    folder = args.out / "lengths"
    read(folder, settings)  # ends the program if there are runs with other settings, before any work
    data = open_data(settings, args.root)
    for seed in range(args.seeds):
        for length in (None, *LENGTHS):
            path = folder / f"{length or 'rule'}-{seed}.json"
            if not path.exists():
                write(path, train(length, seed, settings, data))
    runs = sorted(read(folder, settings), key=lambda run: (run["seed"], run["length"] or 0))
    options = ["--data", args.data, "--seeds", str(args.seeds), *options_of(settings)]
    command = f"python benchmarks/short_trainings.py {shlex.join(options)}"
    (folder / "table.md").write_text(f"{markdown(runs)}\n\n```\n{command}\n```\n")
    print(markdown(runs))


if __name__ == "__main__":
    main()
