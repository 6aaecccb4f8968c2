import json
import re
from copy import deepcopy
from dataclasses import asdict, replace

import pytest
import runs
import setups
import torch
from settings import preset

from udmlss import evaluate_embeddings
from udmlss.models.pca import PCAEmbedder


def test_read_rejects_runs_of_another_program(tmp_path):
    (tmp_path / "udml-0.json").write_text('{"method": "udml", "options": []}')
    with pytest.raises(SystemExit, match=r"got 1 with others: udml-0\.json has settings that no longer exist"):
        runs.read(tmp_path, preset("cub100"))


def test_read_fills_in_settings_that_are_younger_than_the_run(tmp_path):
    saved = asdict(preset("cub100"))
    del saved["workers"]
    (tmp_path / "udml-0.json").write_text(json.dumps({"method": "udml", "settings": saved}))
    assert len(runs.read(tmp_path, preset("cub100"))) == 1
    with pytest.raises(SystemExit, match=r"udml-0\.json has workers 0\. Pass"):
        runs.read(tmp_path, replace(preset("cub100"), workers=2))


def test_versions_name_commit_packages_device_and_threads():
    found = runs.versions()
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?|unknown", found["commit"])
    assert re.fullmatch(r"\d+\.\d+.*", found["torch"])
    assert found["threads"] == str(torch.get_num_threads())


def test_a_run_scores_the_embedder_as_trained_and_as_recomputed(flowers, settings_of, monkeypatch):
    settings = settings_of()
    data, model = setups.open_data(settings, flowers), setups.build_model(settings, 0)
    train, test = (runs.embed_both(model, images)["features"] for images in (data.plain, data.test))
    embedder = PCAEmbedder(train.shape[1], 2)  # with random weights
    rows = {
        "embeddings as trained": embedder(test).detach(),
        "embeddings": deepcopy(embedder).fit(train)(test).detach(),
    }
    monkeypatch.setitem(runs.METHODS, "default", lambda model, *_: setattr(model, "embedder", embedder))
    scores = runs.run("default", 0, settings, data, searches=False)["scores"]
    expected = {name: asdict(evaluate_embeddings(each, data.test_labels, seed=0)) for name, each in rows.items()}
    assert {name: scores[name]["map_at_r"] for name in rows} == pytest.approx(
        {name: found["map_at_r"] for name, found in expected.items()}
    )
    assert scores["embeddings as trained"]["map_at_r"] != scores["embeddings"]["map_at_r"]


def test_searches_with_neighbors_are_scored_without_the_query_itself():
    labels = torch.arange(12).repeat_interleave(2)
    rows = torch.eye(12)[labels] + 0.01 * torch.randn(24, 12)
    scores = runs.search_with_neighbors(rows, labels)
    assert set(scores) == {"embeddings, expanded", "embeddings, re-ranked"}
    assert {each["map_at_r"] for each in scores.values()} == {1.0}
    others = runs.search_with_neighbors(rows, labels.roll(1))  # the nearest item of each is of another class
    assert {each["recall_at"][1] for each in others.values()} == {0.0}
