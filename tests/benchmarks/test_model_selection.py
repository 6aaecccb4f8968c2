import json

import model_selection
import pytest
import quality
from settings import preset

from udmlss.results import LabelFreeScores


def build_run(shared, recall, precision=0.3):
    """Return a run with these measures; all other measures are equal in all runs."""
    label_free = {"self_retrieval": 0.5, "shared_neighbors": shared, "effective_rank": 9.0, "spread": 0.4}
    label_free |= {"consistency": 0.5, "own_consistency": 0.5}
    return {
        "scores": {output: {"recall_at": {"1": recall}, "map_at_r": precision} for output in model_selection.OUTPUTS},
        "label_free": dict.fromkeys(model_selection.OUTPUTS, label_free),
        "references": {
            output: {"training_recall": recall, "recall_of_halves": [0.5, 0.6]} for output in model_selection.OUTPUTS
        },
        "history": [{"agreement": 1 - shared}],
    }


def row(rows, measure):
    return next(row for row in rows if (row["measure"], row["output"]) == (measure, "features"))


def test_measure_that_ranks_like_recall_has_correlation_one_and_loses_nothing():
    rows = model_selection.compare([build_run(0.2, 0.5), build_run(0.9, 0.8), build_run(0.4, 0.6)])
    found = row(rows, "shared neighbors")
    assert (found["correlation"], found["lost"]) == (pytest.approx(1), 0)
    against = row(rows, "agreement of the last two rounds")
    assert (against["correlation"], against["lost"]) == (pytest.approx(-1), pytest.approx(0.3))


def test_rank_correlation_with_map_at_r():
    rows = model_selection.compare([build_run(0.2, 0.5, 0.4), build_run(0.9, 0.8, 0.2), build_run(0.4, 0.6, 0.3)])
    assert row(rows, "shared neighbors")["map_at_r"] == pytest.approx(-1)
    assert "| shared neighbors | 1.00 | -1.00 | 0.0 |" in model_selection.markdown(rows)


def test_lost_recall_is_that_of_the_best_run_minus_that_of_the_chosen_run():
    rows = model_selection.compare([build_run(0.2, 0.5), build_run(0.9, 0.7), build_run(0.4, 0.8)])
    assert row(rows, "shared neighbors")["lost"] == pytest.approx(0.1)
    assert row(rows, "shared neighbors")["correlation"] == pytest.approx(0.5)


def test_score_is_that_of_the_library():
    run = build_run(0.9, 0.7)
    assert (
        model_selection.MEASURES["`LabelFreeScores.score`"](run, "features")
        == LabelFreeScores(0.5, 0.9, 9.0, 0.4).score
    )


def test_variants_differ_in_loss_and_length():
    found = model_selection.variants(preset("cub100"))
    assert {settings.loss for _, settings in found.values()} == {"multi-similarity", "nt-xent", "sup-con"}
    assert {settings.steps for _, settings in found.values()} == {30, 75, 150, 300}
    assert len({settings for _, settings in found.values()}) == len(found) == 5


def test_gather_skips_runs_without_all_measures(tmp_path):
    for name, recall in (("udml-0", 0.5), ("udml-1", 0.6)):
        (tmp_path / f"{name}.json").write_text(json.dumps(build_run(0.5, recall) | {"method": "udml"}))
    found = build_run(0.5, 0.7) | {"method": "udml"}
    for measured in found["label_free"].values():
        measured.pop("spread", None)
    (tmp_path / "udml-2.json").write_text(json.dumps(found))
    (tmp_path / "rounds/preset").mkdir(parents=True)
    (tmp_path / "rounds/preset/udml-0.json").write_text(json.dumps({"method": "udml", "rounds": []}))
    assert list(model_selection.gather(tmp_path)) == ["udml-0", "udml-1"]


def test_gather_counts_runs_with_equal_scores_once(tmp_path):
    for name, recall in (("udml-0", 0.5), ("udml-ss-0", 0.5), ("udml-1", 0.6), ("supervised-0", 0.7)):
        run = build_run(0.5, recall) | {"method": name[:-2]}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    assert list(model_selection.gather(tmp_path)) == ["udml-0", "udml-1"]


def test_table_and_figure_include_every_run_on_clusters(flowers, options, tmp_path):
    out = tmp_path / "flowers"
    given = ["--data", str(flowers), "--seeds", "1", "--out", str(out), *options, "--steps", "10"]
    quality.main([*given, "--methods", "instance,udml,supervised"])
    model_selection.main(given)
    content = json.loads((out / "choosing/table.json").read_text())
    made = ("loss-nt-xent/udml", "loss-sup-con/udml", "steps-2/udml", "steps-5/udml", "steps-20/udml")
    assert set(content["runs"]) == {"udml-0"} | {f"choosing/{name}-0" for name in made}
    assert {row["measure"] for row in content["rows"]} == set(model_selection.MEASURES)
    text = (out / "choosing/table.md").read_text()
    assert f"{len(content['runs'])} runs." in text
    assert "The rank correlation of R@1 on one half of the test images with R@1 on the other half is " in text
    assert "| shared neighbors |" in text
    assert (out / "choosing/plot.png").stat().st_size > 10_000
