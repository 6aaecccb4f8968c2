import json

import choosing
import pytest
import quality
from settings import preset

from udmlss.types import LabelFreeScores


def made(shared, recall, precision=0.3):
    """A run by what the study reads of it; every measure that is not named is the same for all."""
    label_free = {"self_retrieval": 0.5, "shared_neighbors": shared, "effective_rank": 9.0, "spread": 0.4}
    label_free |= {"consistency": 0.5, "own_consistency": 0.5}
    return {
        "scores": {what: {"recall_at": {"1": recall}, "map_at_r": precision} for what in choosing.KINDS},
        "label_free": dict.fromkeys(choosing.KINDS, label_free),
        "references": {what: {"training_recall": recall, "recall_of_halves": [0.5, 0.6]} for what in choosing.KINDS},
        "history": [{"agreement": 1 - shared}],
    }


def row(rows, measure):
    return next(row for row in rows if (row["measure"], row["scored"]) == (measure, "features"))


def test_a_measure_that_ranks_as_recall_does_has_correlation_one_and_loses_nothing():
    rows = choosing.weigh([made(0.2, 0.5), made(0.9, 0.8), made(0.4, 0.6)])
    found = row(rows, "shared neighbours")
    assert (found["correlation"], found["lost"]) == (pytest.approx(1), 0)
    against = row(rows, "agreement of the last two rounds")
    assert (against["correlation"], against["lost"]) == (pytest.approx(-1), pytest.approx(0.3))


def test_map_at_r_has_a_rank_correlation_of_its_own():
    rows = choosing.weigh([made(0.2, 0.5, 0.4), made(0.9, 0.8, 0.2), made(0.4, 0.6, 0.3)])
    assert row(rows, "shared neighbours")["map_at_r"] == pytest.approx(-1)
    assert "| shared neighbours | 1.00 | -1.00 | 0.0 |" in choosing.markdown(rows)


def test_what_is_lost_is_the_best_recall_less_that_of_the_run_with_the_highest_measure():
    rows = choosing.weigh([made(0.2, 0.5), made(0.9, 0.7), made(0.4, 0.8)])
    assert row(rows, "shared neighbours")["lost"] == pytest.approx(0.1)
    assert row(rows, "shared neighbours")["correlation"] == pytest.approx(0.5)


def test_the_score_is_the_one_that_fit_chooses_by():
    run = made(0.9, 0.7)
    assert choosing.MEASURES["score, as `fit` has it"](run, "features") == LabelFreeScores(0.5, 0.9, 9.0, 0.4).score


def test_the_variants_differ_in_loss_and_length():
    found = choosing.variants(preset("cub100"))
    assert {settings.loss for _, settings in found.values()} == {"multi-similarity", "nt-xent", "sup-con"}
    assert {settings.steps for _, settings in found.values()} == {30, 75, 150, 300}
    assert len({settings for _, settings in found.values()}) == len(found) == 5


def test_runs_made_before_all_was_measured_are_left_out(tmp_path):
    for name, recall in (("udml-0", 0.5), ("udml-1", 0.6)):
        (tmp_path / f"{name}.json").write_text(json.dumps(made(0.5, recall) | {"method": "udml"}))
    found = made(0.5, 0.7) | {"method": "udml"}
    for measured in found["label_free"].values():
        measured.pop("spread", None)
    (tmp_path / "udml-2.json").write_text(json.dumps(found))
    (tmp_path / "rounds/preset").mkdir(parents=True)
    (tmp_path / "rounds/preset/udml-0.json").write_text(json.dumps({"method": "udml", "rounds": []}))
    assert list(choosing.gather(tmp_path)) == ["udml-0", "udml-1"]


def test_of_runs_with_equal_figures_one_is_taken(tmp_path):
    for name, recall in (("udml-0", 0.5), ("udml-ss-0", 0.5), ("udml-1", 0.6), ("supervised-0", 0.7)):
        run = made(0.5, recall) | {"method": name[:-2]}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    assert list(choosing.gather(tmp_path)) == ["udml-0", "udml-1"]


def test_the_study_takes_in_every_run_that_clusters_and_draws_it(flowers, options, tmp_path):
    out = tmp_path / "flowers"
    given = ["--data", str(flowers), "--seeds", "1", "--out", str(out), *options, "--steps", "10"]
    quality.main([*given, "--methods", "instance,udml,supervised"])
    choosing.main(given)
    content = json.loads((out / "choosing/table.json").read_text())
    made = ("loss-nt-xent/udml", "loss-sup-con/udml", "steps-2/udml", "steps-5/udml", "steps-20/udml")
    assert set(content["runs"]) == {"udml-0"} | {f"choosing/{name}-0" for name in made}
    assert {row["measure"] for row in content["rows"]} == set(choosing.MEASURES)
    text = (out / "choosing/table.md").read_text()
    assert f"{len(content['runs'])} runs." in text
    assert "R@1 on one half of the test images has a rank correlation with that on the other half of " in text
    assert "| shared neighbours |" in text
    assert (out / "choosing/plot.png").stat().st_size > 10_000
