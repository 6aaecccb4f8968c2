import json
from dataclasses import replace
from types import SimpleNamespace

import layouts
import methods
import metric_losses
import pytest
import quality
import runs
import setups
import torch
import training_functions
from settings import load_settings, preset

from udmlss import Epochs


def names(folder):
    return sorted(path.name for path in folder.glob("*-*.json"))


pytestmark = pytest.mark.xdist_group("quality")  # so that all methods are trained once
OUTPUTS = ["features", "embeddings"]
SEARCHES = [
    *("features with neighbors", "embeddings with neighbors"),
    *("embeddings, expanded", "embeddings, re-ranked"),
]
COMPLETE = ("frozen", "frozen-from-features", "udml")  # methods with two seeds and all scores
OTHERS = [method for method in methods.METHODS if method not in COMPLETE]


def outputs_of(method):
    return OUTPUTS + SEARCHES * (method in COMPLETE)


@pytest.fixture(scope="module")
def finished(flowers, options, tmp_path_factory):
    """The folder of a table with every method, and a second seed and searches of a few."""
    out = tmp_path_factory.mktemp("results") / "flowers"
    given = ["--data", str(flowers), "--out", str(out), *options]
    quality.main([*given, "--methods", ",".join(COMPLETE), "--seeds", "2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "consistency", lambda *_: 0.5)  # four times k-means per output
        quality.main([*given, "--methods", ",".join(OTHERS), "--seeds", "1", "--no-searches"])
    return out


@pytest.fixture(scope="module")
def results(finished):
    """The run of every method with seed 0."""
    return {method: json.loads((finished / f"{method}-0.json").read_text()) for method in methods.METHODS}


def test_table_has_a_row_per_method_and_output(finished):
    lines = (finished / "table.md").read_text().splitlines()
    shown = [line.split(" | ")[:3] for line in lines if line.startswith("| ")][2:]
    seeds = {method: "2" if method in COMPLETE else "1" for method in methods.METHODS}
    expected = [[f"| {method}", output, seeds[method]] for method in methods.METHODS for output in outputs_of(method)]
    for row in expected[: len(OUTPUTS + SEARCHES)]:
        row[1] += ", untrained" * row[1].startswith("embeddings")
    assert shown == expected


def test_table_has_a_command_for_each_number_of_seeds(finished, flowers):
    text = (finished / "table.md").read_text()
    [first, second] = text.split("```")[1].strip().splitlines()
    assert first.startswith(f"python benchmarks/quality.py --data {flowers} --methods {','.join(COMPLETE)} --seeds 2 ")
    assert second.startswith(f"python benchmarks/quality.py --data {flowers} --methods {','.join(OTHERS)} --seeds 1 ")
    assert second.endswith(" --no-searches")
    assert "--no-searches" not in first


def test_without_searches_only_the_outputs_are_scored(flowers, options, tmp_path, results):
    given = ["--data", str(flowers), "--methods", "frozen", "--seeds", "1", "--out", str(tmp_path), *options]
    quality.main([*given, "--no-searches"])
    scores = json.loads((tmp_path / "frozen-0.json").read_text())["scores"]
    assert scores == {output: results["frozen"]["scores"][output] for output in OUTPUTS}
    text = (tmp_path / "table.md").read_text()
    assert " --no-searches\n" in text
    assert "re-ranked" not in text


def test_run_holds_settings_versions_scores_and_history(results):
    for method, run in results.items():
        assert load_settings(run["settings"]).steps == 2
        assert run["versions"]["torch"] == torch.__version__.split("+")[0]
        assert run["label_free"].keys() == {"features", "embeddings"}
        assert list(run["scores"]) == outputs_of(method)
        assert run["n_classes"] == 4
        steps = [report["step"] for report in run["history"]]
        n_steps = 0 if method in {*methods.UNTRAINED, *methods.WITHOUT_CLUSTERS} else 3 if "default" in method else 2
        assert steps == list(range(1, n_steps + 1))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("rotation_loss", {"udml-ss", "udml-ss-true-k", "udml-ss-ranking", "udml-ss-synthesis"}),
        ("auxiliary_loss", {"ranking", "udml-ss-ranking"}),
    ],
)
def test_only_methods_with_this_loss_report_it(results, term, expected):
    assert {name for name, run in results.items() for report in run["history"] if report[term] is not None} == expected


def test_all_methods_differ(results):
    losses = {method: tuple(report["loss"] for report in run["history"]) for method, run in results.items()}
    # these differ in what is clustered, in the final weights, or in the clusterer, and all clusterers find the classes
    same_steps = {"features", "averaged", "recipe", "cluster-contrast-communities", "spcl"}
    same_steps |= {"default", "supervised-default", "supervised-default-keep-colors", "default-flips"}
    same_steps |= {"supervised-default-ignore-orientation"}
    same_steps |= {"default-coarse", "default-coarse-left-out"}  # four clusters have no coarse clusters
    others = [found for method, found in losses.items() if found and method not in same_steps]
    assert len(set(others)) == len(others)


def test_numbers_of_clusters_are_that_of_the_settings_or_multiples_of_the_classes(results):
    counts = {method: run["history"][0]["n_clusters"] for method, run in results.items() if run["history"]}
    assert counts["udml"] == counts["recommended"] == 6
    assert {method: counts[f"{method}-true-k"] for method in ("udml", "udml-ss", "recommended")} == {
        "udml": 4,
        "udml-ss": 4,
        "recommended": 4,
    }
    assert counts["recommended-twice-k"] == 8
    assert counts["supervised"] == counts["supervised-default"] == 4


def test_only_the_embedder_distinguishes_the_untrained_models(results):
    frozen, initialized, *averaged = (results[method]["label_free"] for method in methods.UNTRAINED)
    assert frozen["features"] == initialized["features"]
    assert frozen["embeddings"] != initialized["embeddings"]
    assert all(found["features"] != frozen["features"] for found in averaged)
    assert results["default-flips"]["label_free"] != results["default-keep-colors"]["label_free"]


def test_existing_runs_are_not_repeated(finished, flowers, options, monkeypatch):
    before = {name: (finished / name).read_text() for name in names(finished)}
    repeated = []

    def run(method, seed, *_, **_settings):
        repeated.append((method, seed))
        return json.loads(before[f"{method}-{seed}.json"], object_hook=_with_integer_keys)

    monkeypatch.setattr(runs, "run", run)
    (finished / "udml-1.json").unlink()
    quality.main(["--data", str(flowers), "--seeds", "2", "--methods", "udml", "--out", str(finished), *options])
    assert repeated == [("udml", 1)]
    assert {name: (finished / name).read_text() for name in names(finished)} == before


def _with_integer_keys(value):
    return {int(key) if key.isdigit() else key: item for key, item in value.items()}


def test_rejects_runs_with_other_settings_before_any_work(finished, flowers, options, monkeypatch):
    monkeypatch.setattr(quality, "open_data", None)
    sentence = rf"must have these settings, got {len(names(finished))} with others: .* has steps 2\. Pass"
    with pytest.raises(SystemExit, match=sentence):
        quality.main(["--data", str(flowers), "--out", str(finished), *options, "--steps", "3"])


def test_frozen_is_always_included_and_unknown_methods_are_rejected(flowers, options, tmp_path, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(quality, "ensure", lambda _folder, method, seed, *_, **_settings: ran.append((method, seed)))
    monkeypatch.setattr(quality, "write", lambda *_, **__: None)
    monkeypatch.setattr(quality, "read", lambda *_: [{"method": "frozen", "seed": 0, "scores": {}}])
    quality.main(["--data", str(flowers), "--methods", "udml", "--seeds", "2", "--out", str(tmp_path), *options])
    assert ran == [("frozen", 0), ("udml", 0), ("frozen", 1), ("udml", 1)]
    with pytest.raises(SystemExit):
        quality.main(["--data", str(flowers), "--methods", "udmls"])
    assert "got udmls" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["instance", "udml-ss"])
def test_same_seed_gives_the_same_scores(results, flowers, settings_of, method):
    settings = settings_of()
    found = runs.run(method, 0, settings, setups.open_data(settings, flowers), searches=False)["scores"]
    assert json.loads(json.dumps(found)) == results[method]["scores"]


def test_interrupted_training_saves_no_run(flowers, options, tmp_path, monkeypatch):
    interrupted = SimpleNamespace(history=(), stop_reason="interrupt")
    monkeypatch.setattr(training_functions, "fit", lambda *_, **__: interrupted)
    with pytest.raises(KeyboardInterrupt):
        quality.main(["--data", str(flowers), "--methods", "udml", "--out", str(tmp_path), *options])
    assert names(tmp_path) == ["frozen-0.json"]


@pytest.mark.parametrize("validate", [False, True])
def test_own_pictures_are_the_training_and_the_test_images(flowers, validate, settings_of):
    data = setups.open_data(settings_of("--protocol", "own", *["--validate"] * validate), flowers)
    assert data.test is data.plain
    assert data.test_labels is data.labels
    assert len(data.train) == len(data.plain) == len(data.labels) == (24 if validate else 48)
    assert data.labels.unique().tolist() == list(range(4 if validate else 8))
    names = [dict.fromkeys(label for _, label in images) for images in (data.train, data.plain)]
    assert [len(found) for found in names] == [4 if validate else 8] * 2


def test_own_pictures_in_the_layout_of_cub_have_one_class_per_number(tmp_path):
    root = layouts.cub200(tmp_path / "birds", class_of=(1, 2, 1, 2))
    data = setups.open_data(replace(preset("birds"), protocol="own"), root)
    assert sorted(data.labels.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("validate", [False, True])
def test_training_and_test_images_have_no_class_in_common(flowers, validate, settings_of):
    data = setups.open_data(settings_of(*["--validate"] * validate), flowers)
    train, plain, test = ({label for _, label in images} for images in (data.train, data.plain, data.test))
    assert train == plain == set(data.labels.tolist()) == ({0, 1} if validate else {0, 1, 2, 3})
    assert test == set(data.test_labels.tolist()) == ({2, 3} if validate else {4, 5, 6, 7})
    assert len(data.train) == len(data.plain) == len(data.labels)
    assert len(data.test) == len(data.test_labels)


def test_folder_in_the_layout_of_cub_is_split_by_its_lists(tmp_path):
    root = layouts.cub200(tmp_path / "birds", class_of=(1, 2, 1, 2))
    data = setups.open_data(preset("birds"), root)
    assert [path.parent.name for path in data.train.paths] == ["001.Bird_1"] * 2


LOSSES = [*metric_losses.LOSSES, *metric_losses.OTHERS]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(flowers, settings_of, loss):
    settings = settings_of("--loss", loss, "--steps", "1")
    model = setups.build_model(settings, seed=0)
    before = model.embedder.weight.detach().clone()
    methods.METHODS["supervised"](model, setups.open_data(settings, flowers), settings, 0)
    assert not torch.equal(before, model.embedder.weight)


def test_glyphs_have_the_network_of_the_quickstart():
    settings = preset("glyphs")
    data, model = setups.open_data(settings, None), setups.build_model(settings, seed=0)
    image, _ = data.train[0]
    assert model.eval()(image[None].to(next(model.parameters()).device)).shape == (1, settings.embedding_size)
    assert not torch.equal(image, data.plain[0][0])
    batch_size = settings.clusters_per_batch * settings.samples_per_cluster
    assert settings.steps == Epochs(4).in_steps(len(data.labels), batch_size)
    assert settings.relabel_every == Epochs(0.5).in_steps(len(data.labels), batch_size)
