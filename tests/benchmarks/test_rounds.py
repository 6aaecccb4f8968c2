import json

import pytest
import quality
import rounds
import runs
import torch
from PIL import Image
from setups import build_model, open_data
from views import see

from udmlss import EmbeddingModel, metrics


def looked(step, shared, recall):
    measured = {"self_retrieval": 0.5, "shared_neighbors": shared, "effective_rank": 9.0, "spread": 0.4}
    return {"step": step, "label_free": measured, "recall": dict.fromkeys(rounds.KINDS, recall)}


def test_what_is_kept_is_the_round_with_the_highest_score():
    run = [looked(0, 0.1, 0.5), looked(5, 0.4, 0.6), looked(10, 0.3, 0.8), looked(15, 0.2, 0.4)]
    row = rounds.weigh({"rounds": run, "settled": 15})
    assert (row["rounds"], row["kept_step"], row["settled_step"]) == (3, 5, 5)
    found = row["embeddings"]
    assert [found[name] for name in rounds.TITLES] == [0.5, 0.4, 0.8, 0.6, 0.6]
    assert found["correlation"] == pytest.approx(0.6)  # ranks 1 4 3 2 and 2 3 4 1


def test_rounds_after_the_clusters_settled_are_not_looked_at():
    run = [looked(10 * number, 0.1 * number, 0.9 - 0.1 * number) for number in range(9)]
    row = rounds.weigh({"rounds": run, "settled": 60})
    assert (row["kept_step"], row["settled_step"]) == (80, 60)
    assert row["features"]["settled"] == pytest.approx(0.3)
    assert "+20.0 beside the last" in rounds._means([row, row], "features", "settled")


def given(flowers, options, out, *more):
    return ["--data", str(flowers), "--seeds", "1", "--out", str(out), *options, *more]


@pytest.mark.parametrize("method", ["udml-ss", "recipe-from-features"])
def test_the_rounds_of_a_run_are_scored_with_the_weights_of_their_time(flowers, options, tmp_path, method, monkeypatch):
    """The last round's recalls are those of the trained model; runs of fewer steps end where longer ones were then."""
    _, settings = quality.parse(quality.build_parser(None), given(flowers, options, tmp_path, "--steps", "3"))
    data, seen = open_data(settings, flowers), []
    monkeypatch.setattr(
        rounds, "_recalls", lambda model, _data: seen.append(see(model, data.test)) or {"at": len(seen)}
    )
    run = rounds.follow(method, 0, settings, data)
    found = run["rounds"]
    assert run["settled"] == 3  # three rounds in a row must agree with those before, and the first has none
    assert [look["step"] for look in found] == [0, 1, 2, 3]
    assert found[0]["agreement"] is None
    assert [look["recall"]["at"] for look in found] == [1, 2, 3, 4]
    for steps, expected in zip((2, 3), seen[2:], strict=True):
        model = build_model(settings, 0)
        shorter = quality.parse(quality.build_parser(None), given(flowers, options, tmp_path, "--steps", str(steps)))[1]
        rounds.METHODS[method](model, data, shorter, 0)
        for what, rows in see(model, data.test).items():
            torch.testing.assert_close(rows, expected[what], rtol=0, atol=0)


def test_recalls_are_those_of_the_test_images(flowers, options, tmp_path):
    _, settings = quality.parse(quality.build_parser(None), given(flowers, options, tmp_path))
    data, model = open_data(settings, flowers), build_model(settings, 0)
    expected = metrics.recall_at_k(see(model, data.test)["embeddings"], data.test_labels, (1,))[1]
    assert isinstance(model, EmbeddingModel)
    assert rounds._recalls(model, data)["embeddings"] == expected


def test_runs_of_several_settings_share_a_table_and_a_plot(flowers, options, tmp_path, monkeypatch):
    rounds.main(given(flowers, options, tmp_path, "--methods", "udml,supervised"))
    monkeypatch.setattr(runs, "run", None)
    rounds.main(given(flowers, options, tmp_path, "--steps", "3", "--trunk-lr", "0.1"))
    rows = json.loads((tmp_path / "rounds/table.json").read_text())
    assert len(rows) == 3
    assert sorted(row["rounds"] for row in rows.values()) == [2, 2, 3]
    text = (tmp_path / "rounds/table.md").read_text()
    assert text.count("python benchmarks/rounds.py --data flowers --methods udml") == 2
    assert "Mean over the runs that cluster" in text
    with Image.open(tmp_path / "rounds/plot.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.parametrize("method", ["frozen", "instance", "remembered"])
def test_a_method_without_scores_in_rounds_is_refused(flowers, options, tmp_path, capsys, method):
    with pytest.raises(SystemExit):
        rounds.main(given(flowers, options, tmp_path, "--methods", method))
    assert f"found {method}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
