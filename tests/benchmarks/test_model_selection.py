import json
from dataclasses import asdict, replace

import model_choices
import model_selection
import numpy as np
import pytest
import quality
import rounds
from model_choices import Model
from scipy.stats import spearmanr
from settings import preset


def choice(values, recalls, n_untrained=0):
    """Return models with these values of a measure and these R@1."""
    return [
        Model("udml", {"features": {"value": value}}, {"features": {"R@1": recall}}, is_trained=number >= n_untrained)
        for number, (value, recall) in enumerate(zip(values, recalls, strict=True))
    ]


def value(found):
    return found["value"]


AT = ("features", "R@1")


@pytest.mark.parametrize("seed", range(5))
def test_correlation_within_one_choice_is_spearmans(seed):
    values, recalls = np.random.default_rng(seed).integers(0, 6, (2, 12))  # with equal values
    expected = spearmanr(values, recalls).statistic
    assert model_selection.correlation([choice(values, recalls)], value, *AT) == pytest.approx(expected)
    assert model_selection.rank_correlation(values, recalls) == pytest.approx(expected)


def test_correlation_over_choices_ignores_their_levels():
    easy, hard = choice([1, 2, 3], [0.7, 0.8, 0.9]), choice([7, 8, 9], [0.1, 0.2, 0.3])
    assert model_selection.correlation([easy, hard], value, *AT) == pytest.approx(1)
    opposite = choice([9, 8, 7], [0.1, 0.2, 0.3])
    assert model_selection.correlation([easy, opposite], value, *AT) == pytest.approx(0)


def test_correlation_is_undefined_without_differences_or_without_the_measure():
    equal = [choice([1, 1, 1], [0.7, 0.8, 0.9])]
    assert model_selection.correlation(equal, value, *AT) is None
    assert model_selection.correlation(equal, lambda found: found["other"], *AT) is None
    assert model_selection.rank_correlation([1, 1], [0.1, 0.2]) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], 0.0),
        ([3, 2, 1], 0.4),
        ([2, 2, 1], 0.3),  # one of the first two at random
    ],
)
def test_loss_is_the_score_of_the_best_model_minus_that_of_the_chosen_one(values, expected):
    recalls = [0.5, 0.7, 0.9]
    assert model_selection.loss([choice(values, recalls)], value, *AT) == pytest.approx(expected)
    both = [choice(values, recalls), choice([1, 2, 3], recalls)]
    assert model_selection.loss(both, value, *AT) == pytest.approx(expected / 2)
    assert model_selection.loss(both, value, "features", "MAP@R") is None


@pytest.mark.parametrize(("reference", "expected"), [("a random choice", 0.2), ("no training", 0.1)])
def test_loss_of_references(reference, expected):
    models = choice([0, 0, 0, 0], [0.5, 0.8, 0.6, 0.9], n_untrained=2)
    by = model_selection.REFERENCES[reference]
    assert model_selection.loss_of_reference([models], by, *AT) == pytest.approx(expected)
    trained = choice([0, 0], [0.5, 0.5])
    expected = {"a random choice": expected / 2, "no training": expected}[reference]  # without untrained models
    assert model_selection.loss_of_reference([models, trained], by, *AT) == pytest.approx(expected)


def build_run(method, recall, *, seed=0, **changes):
    """Return a run on birds; all measures but R@1 are equal in all runs."""
    label_free = {"self_retrieval": 0.5, "shared_neighbors": 0.5, "effective_rank": 9.0, "spread": 0.4}
    label_free |= {"consistency": 0.5}
    outputs = model_choices.OUTPUTS
    return {
        "method": method,
        "seed": seed,
        "settings": asdict(replace(preset("cub100"), **changes)),
        "scores": {output: {"recall_at": {"1": recall}, "map_at_r": 0.3} for output in outputs},
        "label_free": {output: dict(label_free) for output in outputs},
        "references": {output: {"training_recall": recall} for output in outputs},
        "history": [{"agreement": None, "n_clusters": 9}],
    }


def save(path, run):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))


def names_of(columns):
    return {title: [sorted(model.name for model in choice) for choice in choices] for title, choices in columns.items()}


def test_choices_have_all_runs_without_true_labels_that_have_all_measures(tmp_path):
    folder = tmp_path / "cub100"
    for number, method in enumerate(["udml", "frozen", "instance", "default", "supervised", "supervised-default"]):
        save(folder / f"{method}-0.json", build_run(method, 0.1 * number))
    save(folder / "udml-ss-0.json", build_run("udml-ss", 0.0))  # the same model as udml
    earlier = build_run("udml", 0.9)
    for measured in earlier["label_free"].values():
        del measured["spread"]
    save(folder / "udml-1.json", earlier)
    save(folder / "rounds/preset/udml-0.json", {"method": "udml", "rounds": [], "stop_step": 0})
    save(tmp_path / "logos/udml-0.json", build_run("udml", 0.5))  # a single run is not a choice
    found = model_choices.read_choices(tmp_path)
    assert names_of(found["runs"]) == {"cub100": [["default", "frozen", "instance", "udml"]]}
    assert [model.name for model in found["runs"]["cub100"][0] if not model.is_trained] == ["frozen"]
    assert found["settings"] == found["rounds"] == {}


def test_choice_of_a_setting_has_runs_that_differ_in_it_alone(tmp_path):
    folder = tmp_path / "cub100-validate"
    for number, steps in enumerate([30, 75, 150, 300]):
        run = build_run("udml", 0.1 * number, steps=steps, validate=True)
        save(folder / ("" if steps == 150 else f"steps/{steps}") / "udml-0.json", run)
    save(folder / "both/udml-0.json", build_run("udml", 0.5, steps=75, n_clusters=9, validate=True))
    save(folder / "k/udml-0.json", build_run("udml", 0.6, n_clusters=9, validate=True))
    save(folder / "steps/75/udml-1.json", build_run("udml", 0.7, seed=1, steps=75, validate=True))
    save(folder / "steps/75/udml-ss-0.json", build_run("udml-ss", 0.8, steps=75, validate=True))
    found = model_choices.read_choices(tmp_path)["settings"]
    assert names_of(found) == {"steps": [["steps/30/udml", "steps/300/udml", "steps/75/udml", "udml"]]}


def test_page_of_trained_runs(flowers, options, tmp_path):
    given = ["--data", str(flowers), "--seeds", "1", "--out", str(tmp_path / "cub100"), *options]
    quality.main([*given, "--methods", "instance,udml,udml-ss,supervised"])
    rounds.main([*given, "--steps", "4", "--methods", "udml,supervised"])
    model_selection.main(["--out", str(tmp_path)])
    text = (tmp_path / "label-free.md").read_text()
    assert text.count("|  | all (4) | cub100 (4) |") == text.count("|  | all (5) | cub100 (5) |") == 4
    assert text.count("| `LabelFreeScores.score` | 0.0, 0.0 |") == 4  # all R@1 are equal: no correlations
    assert text.count("| no training |") == text.count("| a random choice |") == 4
    assert text.count("| end by agreement |") == 2
    assert "Methods and settings: cub100 4." in text
    assert "Choice of one setting" not in text
