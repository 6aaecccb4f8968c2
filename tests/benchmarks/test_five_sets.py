import json

import five_sets
import methods
import pytest
from tables import Row


def row(method, output, recall, spread=None):
    measures = ("R@1", "MAP@R")
    return Row(
        name=method,
        output=output,
        seeds=(0,) if spread is None else (0, 1),
        mean=dict.fromkeys(measures, recall),
        spread={} if spread is None else dict.fromkeys(measures, spread),
    )


def test_all_methods_of_the_comparison_exist_and_have_a_title():
    assert {*five_sets.FIRST, *five_sets.SECOND} == {*methods.COMPARED}
    others = {"frozen-ignore-colors", "frozen-ignore-orientation", "frozen-flips", "default-keep-colors"}
    others |= {"default-ignore-orientation", "default-flips", "supervised-default-ignore-orientation"}
    assert five_sets.TITLES.keys() == {*methods.COMPARED, *others} <= methods.METHODS.keys()
    assert {*five_sets.OWN} <= {*five_sets.FIRST}


def test_the_first_runs_are_those_of_seed_0_that_the_conclusion_needs():
    order = list(five_sets.plan(2))
    assert order[:5] == [("unseen", method, 0) for method in five_sets.FIRST]
    assert [seed for _, _, seed in order] == sorted(seed for _, _, seed in order)
    assert len(set(order)) == len(order) == 2 * (5 + 4 + 4)


def test_fraction_is_the_gain_over_frozen_features_as_a_fraction_of_that_of_true_labels():
    rows = {
        data: {
            (found.name, found.output): found
            for found in (
                row("frozen", "features", 0.5),
                row("frozen", "embeddings", 0.3),
                row("default", "embeddings", recall, 0.01),
                row("supervised-default", "embeddings", 0.9),
            )
        }
        for data, recall in {"cub100": 0.7, "logos": 0.8}.items()
    }
    lines = five_sets.markdown(rows, "embeddings").splitlines()
    assert lines[0].startswith("|  | cub100 | logos | fraction of the gain of true labels, R@1")
    assert "| frozen | 30.0, 30.0 | 30.0, 30.0 | -50% (-50%) | -50% (-50%) |" in lines
    last = "| default, no k | 70.0 ± 1.0, 70.0 ± 1.0 | 80.0 ± 1.0, 80.0 ± 1.0 | 62% (50%) | 62% (50%) |"
    assert last in lines
    del rows["logos"]["frozen", "embeddings"]
    lines = five_sets.markdown(rows, "embeddings").splitlines()
    assert "| frozen | 30.0, 30.0 |  |  |  |" in lines  # a mean over other datasets could not be compared
    assert last in lines


def test_searches_start_at_the_features_without_a_search():
    of_set = {
        (found.name, found.output): found
        for found in (
            row("frozen", "features", 0.5),
            row("default", "embeddings, re-ranked", 0.7),
            row("supervised-default", "embeddings, re-ranked", 0.9),
        )
    }
    line = five_sets.markdown({"logos": of_set}, "embeddings, re-ranked").splitlines()[2]
    assert line == "| default, no k | 70.0, 70.0 | 50% (50%) | 50% (50%) |"


@pytest.fixture
def root(flowers, tmp_path):
    """A folder with two of the datasets, which have the same images."""
    for name in ("groceries", "logos"):
        (tmp_path / "sets" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sets" / name).symlink_to(flowers)
    return tmp_path / "sets"


def test_missing_runs_are_made_until_the_time_is_over_and_tables_list_all(root, options, tmp_path, monkeypatch):
    out, elapsed = tmp_path / "results", iter(range(100))
    monkeypatch.setattr(five_sets.time, "monotonic", lambda: 60 * next(elapsed))
    monkeypatch.setattr(five_sets, "FIRST", ("frozen", "default"))
    monkeypatch.setattr(five_sets, "OWN", ("default",))
    monkeypatch.setattr(five_sets, "SECOND", ())
    given = ["--data", "groceries,logos", "--seeds", "1", "--out", str(out), "--root", str(root), *options]
    five_sets.main([*given, "--minutes", "3.5"])
    found = [str(path.relative_to(out)) for path in sorted(out.glob("*/*-0.json"))]
    assert found == ["groceries/default-0.json", "groceries/frozen-0.json", "logos/frozen-0.json"]
    text = (out / "five-sets.md").read_text()
    outputs = {*five_sets.OUTPUTS} - {"embeddings as trained"}  # which networks from scratch lack
    assert text.count("| frozen |") == len(outputs)
    assert "own" not in text.split("```")[0]
    five_sets.main(given)
    assert len(list(out.glob("*/*-0.json"))) == 6
    run = json.loads((out / "logos-own/default-0.json").read_text())
    assert (run["n_classes"], run["settings"]["protocol"]) == (8, "own")
    text = (out / "five-sets.md").read_text()
    assert f"logos {run['history'][-1]['n_clusters']} / 8" in text
    assert text.count("| default, no k |") == 2 * len(outputs)
    assert "--data groceries,logos" in text
    assert "the images of the training" in (out / "logos-own/table.md").read_text()


def test_rejects_other_datasets(capsys):
    with pytest.raises(SystemExit):
        five_sets.main(["--data", "glyphs,cars"])
    assert "got cars" in capsys.readouterr().err
