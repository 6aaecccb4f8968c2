import json

import model_choices
import pytest
import rounds
import runs
import short_trainings
import torch
from PIL import Image
from setups import build_model, open_data

from udmlss import metrics


def one_round(step, shared, recall):
    scores = {"self_retrieval": 0.5, "shared_neighbors": shared, "effective_rank": 9.0, "spread": 0.4}
    return {"step": step, "label_free": scores, "recall": dict.fromkeys(rounds.OUTPUTS, recall)}


def test_best_weights_are_those_of_the_highest_score():
    run = [one_round(0, 0.1, 0.5), one_round(5, 0.4, 0.6), one_round(10, 0.3, 0.8), one_round(15, 0.2, 0.4)]
    row = rounds.summarize({"rounds": run, "stop_step": 15})
    assert (row["rounds"], row["steps"]) == (3, {"best weights": 5, "early stopping": 5})
    found = row["embeddings"]
    assert [found[title] for title in rounds.TITLES] == [0.5, 0.4, 0.8, 0.6, 0.6]
    assert found["correlation"] == pytest.approx(0.6)  # ranks 1 4 3 2 and 2 3 4 1


def test_early_stopping_chooses_among_the_rounds_before_it():
    run = [one_round(10 * number, 0.1 * number, 0.9 - 0.1 * number) for number in range(9)]
    row = rounds.summarize({"rounds": run, "stop_step": 60})
    assert row["steps"] == {"best weights": 80, "early stopping": 60}
    assert row["features"]["early stopping"] == pytest.approx(0.3)
    assert "+20.0 from last" in rounds._mean_gains([row, row], "features", "early stopping")


@pytest.mark.parametrize("method", ["udml-ss", "recipe-from-features", "cluster-contrast"])
def test_each_round_is_scored_with_the_weights_of_that_round(flowers, settings_of, method, monkeypatch):
    """Compare with shorter runs, which end with the weights that a longer run has after this number of steps."""
    settings, embedded = settings_of("--steps", "3"), []
    data = open_data(settings, flowers)

    def record(model, data):
        embedded.append(runs.embed_both(model, data.test))
        return {"recall": {"call": len(embedded)}}

    monkeypatch.setattr(rounds, "scores_of", record)
    run = rounds.train(method, 0, settings, data)
    assert run["stop_step"] == 3  # three rounds in a row must agree with the previous round, and the first has none
    assert [found["step"] for found in run["rounds"]] == [0, 1, 2, 3]
    assert [found["recall"]["call"] for found in run["rounds"]] == [1, 2, 3, 4]
    assert run["rounds"][0]["agreement"] is None
    for steps, expected in zip((2, 3), embedded[2:], strict=True):
        model = build_model(settings, 0)
        rounds.METHODS[method](model, data, settings_of("--steps", str(steps)), 0)
        for output, rows in runs.embed_both(model, data.test).items():
            torch.testing.assert_close(rows, expected[output], rtol=0, atol=0)


def test_recalls_are_those_of_the_test_images(flowers, settings_of):
    settings = settings_of()
    data, model = open_data(settings, flowers), build_model(settings, 0)
    expected = metrics.recall_at_k(runs.embed_both(model, data.test)["embeddings"], data.test_labels, 1)[1]
    assert rounds.scores_of(model, data)["recall"]["embeddings"] == expected


def test_runs_with_different_settings_have_one_table_and_figure(flowers, options, tmp_path):
    given = ["--data", str(flowers), "--seeds", "1", "--out", str(tmp_path), *options]
    rounds.main([*given, "--methods", "udml,supervised"])
    assert not (tmp_path / "rounds/plot.png").exists()
    rounds.main([*given, "--steps", "3", "--trunk-lr", "0.1", "--plot"])
    rows = json.loads((tmp_path / "rounds/table.json").read_text())
    assert len(rows) == 3
    assert sorted(row["rounds"] for row in rows.values()) == [2, 2, 3]
    text = (tmp_path / "rounds/table.md").read_text()
    assert text.count(f"python benchmarks/rounds.py --data {flowers} --methods udml") == 2
    assert "Mean differences in R@1 over the runs on clusters" in text
    with Image.open(tmp_path / "rounds/plot.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.parametrize("method", ["frozen", "instance"])
def test_rejects_methods_without_rounds(flowers, options, tmp_path, capsys, method):
    with pytest.raises(SystemExit):
        rounds.main(["--data", str(flowers), "--out", str(tmp_path), *options, "--methods", method])
    assert f"got {method}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_short_trainings_score_each_length_of_the_lists_and_that_of_the_rule(flowers, options, tmp_path, monkeypatch):
    monkeypatch.setattr(short_trainings, "LENGTHS", (2,))
    given = ["--data", str(flowers), "--seeds", "1", "--out", str(tmp_path), *options]
    short_trainings.main(given)
    lines = (tmp_path / "lengths/table.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [["| 0", "rule"], ["| 0", "2"]]
    run = json.loads((tmp_path / "lengths/2-0.json").read_text())
    assert f"{100 * run['recall']['embeddings']:.1f}" == lines[3].split(" | ")[4]
    assert not model_choices.read_runs(tmp_path)  # they are not among the runs of quality.py
    monkeypatch.setattr(short_trainings, "default", None)  # saved runs are not repeated
    short_trainings.main(given)
