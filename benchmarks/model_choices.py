"""Models that can be compared with each other, read from the files of runs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from five_sets import SETS
from methods import METHODS, SUPERVISED, UNTRAINED
from runs import Run, load
from settings import load_settings, preset

WITHOUT_LABELS = {*METHODS} - {*SUPERVISED}
OUTPUTS = ("embeddings", "features")
FEWEST = 4  # models of a choice
OTHER_RUNS = {"rounds", "lengths"}  # folders of runs of rounds.py and short_trainings.py, whose scores differ
SPLITS = ("", "-own", "-validate")  # ends of the names of folders


@dataclass(frozen=True)
class Model:
    """A model that could be chosen.

    Args:
        name: Path of the run, without the seed.
        measures: Measures of the training images by name, by output.
        scores: R@1 and MAP@R of the test images, by output.
        is_trained: Whether it was trained.
    """

    name: str
    measures: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Mapping[str, float]]
    is_trained: bool = True


Choice = Sequence[Model]  # models of which one is to be chosen
Columns = Mapping[str, Sequence[Choice]]  # by title of a column in a table


def read_choices(results: Path) -> dict[str, Columns]:
    """Return the choices between runs, between the values of one setting, and between the rounds of a run."""
    folders = [results / (data + split) for data in SETS for split in SPLITS]
    runs = {folder.name: read_runs(folder) for folder in folders}
    found = {
        "runs": {name: [[_model_of_run(*pair) for pair in of_set.items()]] for name, of_set in runs.items()},
        "settings": _choices_of_settings(runs.values()),
        "rounds": {folder.name: [*_choices_of_rounds(folder)] for folder in folders},
    }
    return {section: _large_enough(columns) for section, columns in found.items()}


def _large_enough(columns: Columns) -> Columns:
    enough = {name: [choice for choice in choices if len(choice) >= FEWEST] for name, choices in columns.items()}
    return {name: choices for name, choices in enough.items() if choices}


def read_runs(folder: Path) -> dict[str, Run]:
    """Return all runs without true labels that have all measures, by path, from a folder and the folders in it.

    Runs with equal scores count once: a sweep without rotation trains the same model as `udml` in the table.
    """
    paths = [path for path in sorted(folder.rglob("*-*.json"), reverse=True) if OTHER_RUNS.isdisjoint(path.parts)]
    found = {str(path.relative_to(folder).with_suffix("")): load(path) for path in paths}
    runs = {
        json.dumps([run["scores"], run["label_free"]]): (name, run)
        for name, run in found.items()
        if run["method"] in WITHOUT_LABELS and "spread" in run["label_free"]["features"]
    }
    return dict(sorted(runs.values(), key=lambda named: named[0]))


def _model_of_run(name: str, run: Run) -> Model:
    last = run["history"][-1] if run["history"] else {"n_clusters": 0, "agreement": None}
    of_clusters = {"agreement": last["agreement"] or 0, "n_clusters": last["n_clusters"]}
    measures, scores = {}, {}
    for output in OUTPUTS:
        measures[output] = run["label_free"][output] | of_clusters
        measures[output]["training_recall"] = run["references"][output]["training_recall"]
        found = run["scores"][output]
        scores[output] = {"R@1": found["recall_at"]["1"], "MAP@R": found["map_at_r"]}
    return Model(name.rsplit("-", 1)[0], measures, scores, is_trained=run["method"] not in UNTRAINED)


def _choices_of_settings(sets: Iterable[Mapping[str, Run]]) -> Columns:
    """Return the runs that differ in a single setting, by name of the setting."""
    columns: dict[str, list[Choice]] = {}
    for runs in sets:
        unchanged: dict[tuple[str, int], list[Model]] = {}
        groups: dict[tuple[str, tuple[str, int]], list[Model]] = {}
        for name, run in runs.items():
            model, key = _model_of_run(name, run), (run["method"], run["seed"])
            match _changed_settings(run):
                case []:
                    unchanged.setdefault(key, []).append(model)
                case [setting]:
                    groups.setdefault((setting, key), []).append(model)
        for (setting, key), models in groups.items():
            columns.setdefault(setting, []).append(unchanged.get(key, []) + models)
    return columns


def _changed_settings(run: Run) -> list[str] | None:
    """Return the settings that differ from the preset; None if the run has settings that no longer exist."""
    settings = load_settings(run["settings"])
    if settings is None:
        return None
    usual = asdict(preset(settings.data)) | {"validate": settings.validate, "protocol": settings.protocol}
    return [name for name, value in asdict(settings).items() if value != usual[name]]


def _choices_of_rounds(folder: Path) -> Iterator[Choice]:
    """Yield the rounds of each run, in their order."""
    for path in sorted(folder.glob("rounds/*/*-*.json")):
        run = load(path)
        if run["method"] in WITHOUT_LABELS:
            yield [_model_of_round(path.stem, found, run["stop_step"]) for found in run["rounds"]]


def _model_of_round(name: str, found: Mapping[str, Any], stop_step: int) -> Model:
    step = found["step"]
    measures = found["label_free"] | {"agreement": found["agreement"] or 0, "steps": step}
    measures["is_stop"] = step == stop_step
    titles = {"recall": "R@1", "map_at_r": "MAP@R"}  # the earliest runs lack MAP@R
    scores = {
        output: {title: found[key][output] for key, title in titles.items() if key in found} for output in OUTPUTS
    }
    return Model(name, dict.fromkeys(OUTPUTS, measures), scores, is_trained=step > 0)
