"""Measure how well label-free scores choose between models, on all datasets.

    python benchmarks/model_selection.py

Nothing is trained. The saved runs of benchmarks/quality.py, benchmarks/sweep.py and benchmarks/rounds.py are read, and
the tables are written to label-free.md. Three choices are compared: between the runs on a dataset, which differ in
method, settings and seed, between runs that differ in one setting, and between the rounds of a run. Runs on true labels
are excluded.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from markdown_tables import markdown_table
from model_choices import FEWEST, OUTPUTS, Choice, Columns, read_choices
from numpy.typing import NDArray
from scipy.stats import rankdata
from settings import ROOT

from udmlss.results import LabelFreeScores

Floats = NDArray[np.float64]
Measure = Callable[[Mapping[str, float]], float]
Reference = Callable[[Floats, NDArray[np.bool_]], float]
Cells = Sequence[Sequence[float | None]]  # by column and target
TARGETS = ("R@1", "MAP@R")
LEGEND = f"""\
Each cell has the value for R@1 and the value for MAP@R. They are scores of classes that training did not see, or of the
training images in columns with "own". The label-free measures are those of the training images. The number of models
that are compared is in brackets, separated by + if a column has several choices. Choices between fewer than {FEWEST}
models are left out, as are runs of earlier programs that lack measures.

Rank correlation: Spearman's, of a measure and a score. Models are ranked within their choice, and the ranks of all
choices of a column are correlated together.

Points lost: score of the best model minus that of the model with the highest measure, in points. With several choices,
it is the mean over them. The column `all` has the mean over the other columns that have a value."""
SECTIONS = {
    "runs": """\
## Choice between runs

All runs on a dataset, except those on true labels. They differ in method, settings and seed, and include untrained
models, of which "no training" is the best one.""",
    "settings": """\
## Choice of one setting

Runs on one dataset with the same method and seed, of which each differs from the preset in a single setting, and the
run with the preset. A column has the choices of one setting.""",
    "rounds": """\
## Choice of the round

The rounds of a run, and the model before training ("no training"). All measures are those of embeddings, also in the
tables of features. "number of steps" chooses the last round, and "end by agreement" the round after which
`EarlyStopping("agreement", threshold=0.95, patience=3)` ends training. The earliest runs have no MAP@R.""",
}


def _score(found: Mapping[str, float]) -> float:
    names = ("self_retrieval", "shared_neighbors", "effective_rank", "spread")
    return LabelFreeScores(**{name: found[name] for name in names}).score


def _named(name: str) -> Measure:
    return lambda found: found[name]


# a measure raises KeyError if a model lacks it
MEASURES: dict[str, Measure] = {
    "`LabelFreeScores.score`": _score,
    "self-retrieval": _named("self_retrieval"),
    "shared neighbors": _named("shared_neighbors"),
    "spread": _named("spread"),
    "consistency": _named("consistency"),
    "product of shared neighbors and spread": lambda found: found["shared_neighbors"] * found["spread"],
    "shared neighbors plus 4 times spread": lambda found: found["shared_neighbors"] + 4 * found["spread"],
    "sum of shared neighbors, spread and consistency": lambda found: 2 * _score(found) + found["consistency"],
    "agreement with the previous round": _named("agreement"),
    "number of clusters": _named("n_clusters"),
    "number of steps": _named("steps"),
    "with labels: R@1 of the training images": _named("training_recall"),
}
RULES: dict[str, Measure] = {"end by agreement": _named("is_stop")}  # the chosen model has the highest value
REFERENCES: dict[str, Reference] = {
    "a random choice": lambda scores, _are_trained: scores.mean(),
    "no training": lambda scores, are_trained: scores[~are_trained].max(initial=-np.inf),
}


def correlation(choices: Sequence[Choice], measure: Measure, output: str, target: str) -> float | None:
    """Return the correlation of ranks within the choices; None if no choice has the measure, or if it is constant."""
    pairs = [[_ranks(values) for values in pair] for pair in _pairs(choices, measure, output, target)]
    return _correlation(*(np.concatenate(ranks) for ranks in zip(*pairs, strict=True))) if pairs else None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, or None if all values of a sequence are equal."""
    return _correlation(_ranks(np.array(first)), _ranks(np.array(second)))


def _correlation(first: Floats, second: Floats) -> float | None:
    if not (first.any() and second.any()):
        return None
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def _ranks(values: Floats) -> Floats:
    """Return ranks as fractions of the number of values, with mean 0."""
    ranks: Floats = (rankdata(values) - (len(values) + 1) / 2) / len(values)
    return ranks


def _pairs(choices: Sequence[Choice], measure: Measure, output: str, target: str) -> Iterator[tuple[Floats, Floats]]:
    """Yield the values of a measure and the scores, for each choice whose models have both."""
    for models in choices:
        try:
            values = [(measure(model.measures[output]), model.scores[output][target]) for model in models]
        except KeyError:
            continue
        first, second = zip(*values, strict=True)
        yield np.array(first), np.array(second)


def loss(choices: Sequence[Choice], measure: Measure, output: str, target: str) -> float | None:
    """Return the mean loss of choosing the model with the highest value; None if no choice has the measure.

    Of models with equal values, one is chosen at random.
    """
    pairs = _pairs(choices, measure, output, target)
    losses = [scores.max() - scores[values == values.max()].mean() for values, scores in pairs]
    return float(np.mean(losses)) if losses else None


def loss_of_reference(choices: Sequence[Choice], reference: Reference, output: str, target: str) -> float | None:
    """Return the mean loss of a reference; None if no choice has it."""
    losses = []
    for models in choices:
        if all(target in model.scores[output] for model in models):
            scores = np.array([model.scores[output][target] for model in models])
            found = reference(scores, np.array([model.is_trained for model in models]))
            losses += [scores.max() - found] if np.isfinite(found) else []
    return float(np.mean(losses)) if losses else None


def page(sections: Mapping[str, Columns]) -> str:
    """Return all tables."""
    parts = ["# Choosing models without labels", LEGEND]
    for section, columns in sections.items():
        if columns:
            parts.append(SECTIONS[section])
            for output in OUTPUTS:
                parts += [f"Rank correlation, {output}:", _table(columns, _correlations(columns, output), "{:.2f}")]
                parts += [f"Points lost, {output}:", _table(columns, _losses(columns, output), "{:.1f}")]
        if section == "runs":
            parts.append(f"Methods and settings: {_n_settings(columns)}.")
    return "\n\n".join([*parts, "```\npython benchmarks/model_selection.py\n```"]) + "\n"


def _n_settings(columns: Columns) -> str:
    """Return the number of methods and settings of each column, whose other runs differ in the seed only."""
    names = {name: {model.name for models in choices for model in models} for name, choices in columns.items()}
    return ", ".join(f"{name} {len(different)}" for name, different in names.items())


def _correlations(columns: Columns, output: str) -> dict[str, Cells]:
    together = [[choice for choices in columns.values() for choice in choices], *columns.values()]
    return {
        name: [[correlation(choices, measure, output, target) for target in TARGETS] for choices in together]
        for name, measure in MEASURES.items()
    }


def _losses(columns: Columns, output: str) -> dict[str, Cells]:
    rows: dict[str, Cells] = {
        name: [[loss(choices, measure, output, target) for target in TARGETS] for choices in columns.values()]
        for name, measure in (MEASURES | RULES).items()
    }
    rows |= {
        name: [[loss_of_reference(choices, by, output, target) for target in TARGETS] for choices in columns.values()]
        for name, by in REFERENCES.items()
    }
    points = {
        name: [[None if value is None else 100 * value for value in values] for values in cells]
        for name, cells in rows.items()
    }
    return {name: [_means(cells), *cells] for name, cells in points.items()}


def _means(cells: Cells) -> list[float | None]:
    known = [[value for value in values if value is not None] for values in zip(*cells, strict=True)]
    return [fmean(values) if values else None for values in known]


def _table(columns: Columns, rows: Mapping[str, Cells], form: str) -> str:
    """Return a table without the rows that have no value."""
    counts = [[len(choice) for choice in choices] for choices in columns.values()]
    titles = ["", f"all ({sum(map(sum, counts))})"]
    titles += [f"{name} ({' + '.join(map(str, sizes))})" for name, sizes in zip(columns, counts, strict=True)]
    lines = []
    for name, cells in rows.items():
        if any(value is not None for value in cells[0]):
            lines.append([name, *(_cell(values, form) for values in cells)])
    return markdown_table(titles, lines)


def _cell(values: Sequence[float | None], form: str) -> str:
    return ", ".join("-" if value is None else form.format(value) for value in values)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results", help="folder of the folders of runs and of the page"
    )
    args = parser.parse_args(arguments)
    path = args.out / "label-free.md"
    path.write_text(page(read_choices(args.out)))
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
