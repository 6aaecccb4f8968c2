import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import clustered
import layouts
import methods
import metric_losses
import pytest
import quality
import runs
import setups
import torch
import unclustered
from settings import Settings, preset


def names(folder):
    return sorted(path.name for path in folder.glob("*-*.json"))


@pytest.fixture(scope="module")
def done(flowers, options, tmp_path_factory):
    """The folder of a whole table: every method, two seeds."""
    out = tmp_path_factory.mktemp("results") / "flowers"
    every = ",".join(methods.METHODS)
    quality.main(["--data", str(flowers), "--methods", every, "--seeds", "2", "--out", str(out), *options])
    return out


def test_every_method_runs_and_has_two_rows(done):
    lines = (done / "table.md").read_text().splitlines()
    shown = [line.split(" | ")[:3] for line in lines if line.startswith("| ")][2:]
    kinds = ["features", "embeddings"]
    expected = [[f"| {method}", scored, "2"] for method in methods.METHODS for scored in kinds]
    expected[1][1] = "embeddings, untrained"
    assert shown == expected


def test_a_run_holds_settings_versions_both_scores_and_the_rounds(done):
    for method in methods.METHODS:
        run = json.loads((done / f"{method}-1.json").read_text())
        assert Settings(**run["settings"]).steps == 2
        assert run["versions"]["torch"] == torch.__version__.split("+")[0]
        assert run["scores"].keys() == {"features", "embeddings"}
        rounds = [report["step"] for report in run["history"]]
        assert rounds == ([] if method in {"frozen", *methods.WITHOUT_CLUSTERS} else [1, 2])


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("rotation_loss", {"udml-ss", "udml-ss-ranking", "udml-ss-synthesis"}),
        ("auxiliary_loss", {"ranking", "udml-ss-ranking"}),
    ],
)
def test_only_methods_named_after_it_have_a_further_loss(done, part, expected):
    found = {
        method
        for method in methods.METHODS
        for report in json.loads((done / f"{method}-0.json").read_text())["history"]
        if report[part] is not None
    }
    assert found == expected


def test_no_two_methods_do_the_same(done):
    losses = {
        method: tuple(report["loss"] for report in json.loads((done / f"{method}-0.json").read_text())["history"])
        for method in methods.METHODS
    }
    alike = {
        "features",
        "averaged",
        "recipe",
        "remembered",
    }  # which differ from others in what is clustered and what is kept
    others = [found for method, found in losses.items() if found and method not in alike]
    assert len(set(others)) == len(others)


def test_the_standard_table_has_the_recommended_recipe_between_the_baselines_and_the_upper_bound():
    assert methods.COMPARED == ("frozen", "instance", "udml", "udml-ss", "recommended", "supervised")


def test_what_is_there_is_not_run_again_and_what_is_missing_is(done, flowers, options, monkeypatch):
    before = {name: (done / name).read_text() for name in names(done)}
    ran = []
    monkeypatch.setattr(runs, "run", lambda *given: ran.append(given[:2]) or before_of(before, *given[:2]))
    (done / "udml-1.json").unlink()
    quality.main(["--data", str(flowers), "--seeds", "2", "--methods", "udml", "--out", str(done), *options])
    assert ran == [("udml", 1)]
    assert {name: (done / name).read_text() for name in names(done)} == before
    assert f"--methods {','.join(methods.METHODS)} --seeds 2 " in (done / "table.md").read_text()


def before_of(before, method, seed):
    return json.loads(before[f"{method}-{seed}.json"], object_hook=_with_whole_keys)


def _with_whole_keys(value):
    return {int(key) if key.isdigit() else key: item for key, item in value.items()}


def test_runs_with_other_settings_are_refused_before_any_work(done, flowers, options, monkeypatch):
    monkeypatch.setattr(quality, "open_data", None)
    sentence = rf"must have these settings, got {2 * len(methods.METHODS)} with others, .* with steps 2\. Give"
    with pytest.raises(SystemExit, match=sentence):
        quality.main(["--data", str(flowers), "--out", str(done), *options, "--steps", "3"])


def test_a_run_of_another_program_is_refused(tmp_path):
    (tmp_path / "udml-0.json").write_text('{"method": "udml", "options": []}')
    with pytest.raises(SystemExit, match=r"found 1 with others, udml-0\.json with no settings"):
        runs.read(tmp_path, preset("cub100"))


def test_a_setting_younger_than_a_run_had_its_default(tmp_path):
    older = asdict(preset("cub100"))
    del older["pooling"]
    (tmp_path / "udml-0.json").write_text(json.dumps({"method": "udml", "settings": older}))
    assert len(runs.read(tmp_path, preset("cub100"))) == 1
    with pytest.raises(SystemExit, match=r"udml-0\.json with pooling average\. Give"):
        runs.read(tmp_path, replace(preset("cub100"), pooling="average+maximum"))


def test_pooling_by_average_and_maximum_sums_both():
    plain, both = (
        setups.build_model(replace(preset("cub100"), pooling=pooling), seed=0).trunk.eval()
        for pooling in ("average", "average+maximum")
    )
    maps = []
    both._avg_pooling.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    images = torch.rand(2, 3, 112, 112, device=next(both.parameters()).device)
    with torch.no_grad():
        features, average = both(images), plain(images)
    torch.testing.assert_close(features, average + maps[0].amax(dim=(2, 3)))


def test_frozen_runs_unasked_and_an_unknown_method_is_refused(flowers, options, tmp_path, capsys):
    quality.main(["--data", str(flowers), "--methods", "udml", "--seeds", "1", "--out", str(tmp_path), *options])
    assert names(tmp_path) == ["frozen-0.json", "udml-0.json"]
    with pytest.raises(SystemExit):
        quality.main(["--data", str(flowers), "--methods", "udmls"])
    assert "found udmls" in capsys.readouterr().err


def test_one_seed_gives_one_model(flowers, options, tmp_path, done):
    arguments = ["--data", str(flowers), "--methods", "instance,udml-ss", "--seeds", "1", "--out", str(tmp_path)]
    quality.main([*arguments, *options])
    for name in names(tmp_path):
        again, first = (json.loads((folder / name).read_text())["scores"] for folder in (tmp_path, done))
        assert again == first


def test_seeds_go_before_methods(flowers, options, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(quality, "ensure", lambda _folder, method, seed, *_: ran.append((method, seed)))
    monkeypatch.setattr(quality, "write", lambda *_, **__: None)
    monkeypatch.setattr(quality, "read", lambda *_: [{"method": "frozen", "seed": 0}])
    quality.main(["--data", str(flowers), "--methods", "udml", "--seeds", "2", "--out", str(tmp_path), *options])
    assert ran == [("frozen", 0), ("udml", 0), ("frozen", 1), ("udml", 1)]


def test_an_interrupted_training_leaves_no_run(flowers, options, tmp_path, monkeypatch):
    monkeypatch.setattr(clustered, "fit", lambda *_, **__: SimpleNamespace(history=(), ended="interrupt"))
    with pytest.raises(KeyboardInterrupt):
        quality.main(["--data", str(flowers), "--methods", "udml", "--out", str(tmp_path), *options])
    assert names(tmp_path) == ["frozen-0.json"]


@pytest.mark.parametrize("validate", [False, True])
def test_the_sides_share_no_class_and_validation_never_sees_the_test_classes(flowers, validate, options):
    settings = quality.parse(
        quality.build_parser(None), ["--data", str(flowers), *options, *["--validate"] * validate]
    )[1]
    data = setups.open_data(settings, flowers)
    train, plain, test = ({label for _, label in images} for images in (data.train, data.plain, data.test))
    assert train == plain == set(data.labels.tolist()) == ({0, 1} if validate else {0, 1, 2, 3})
    assert test == set(data.test_labels.tolist()) == ({2, 3} if validate else {4, 5, 6, 7})
    assert len(data.train) == len(data.plain) == len(data.labels)
    assert len(data.test) == len(data.test_labels)


def test_a_folder_in_cubs_layout_is_read_by_its_lists(tmp_path):
    root = layouts.cub200(tmp_path / "birds", class_of=(1, 2, 1, 2))
    data = setups.open_data(preset("birds"), root)
    assert [path.parent.name for path in data.train.paths] == ["001.Bird_1"] * 2


LOSSES = [*metric_losses.LOSSES, *metric_losses.OTHERS]
NO_INSTANCE = ["lifted", "n-pairs", "margin", "fast-ap", "proxy-anchor", "soft-triple", *metric_losses.OTHERS]
NO_INSTANCE.remove("batch-all")


@pytest.fixture(scope="module")
def settings_of(flowers, options):
    return lambda *more: quality.parse(quality.build_parser(None), ["--data", str(flowers), *options, *more])[1]


@pytest.mark.parametrize(
    ("method", "loss"),
    [(method, loss) for method in (clustered.udml, methods.METHODS["supervised"]) for loss in LOSSES]
    + [(unclustered.instance, loss) for loss in LOSSES if loss not in NO_INSTANCE],
)
def test_every_loss_trains(flowers, settings_of, method, loss):
    settings = settings_of("--loss", loss)
    model = setups.build_model(settings, seed=0)
    before = model.embedder.weight.detach().clone()
    method(model, setups.open_data(settings, flowers), settings, 0)
    assert not torch.equal(before, model.embedder.weight)


@pytest.mark.parametrize("loss", NO_INSTANCE)
def test_a_loss_that_needs_classes_is_refused_where_there_are_none(flowers, settings_of, loss):
    settings = settings_of("--loss", loss)
    with pytest.raises(SystemExit, match=f"takes, got {loss}"):
        unclustered.instance(setups.build_model(settings, seed=0), setups.open_data(settings, flowers), settings, 0)


def test_the_made_data_set_opens_with_the_quickstarts_network():
    settings = preset("glyphs")
    data, model = setups.open_data(settings, None), setups.build_model(settings, seed=0)
    image, _ = data.train[0]
    assert model.eval()(image[None].to(next(model.parameters()).device)).shape == (1, settings.embedding_size)
    assert not torch.equal(image, data.plain[0][0])
    assert settings.steps == passes_in_steps(4, settings, len(data.labels))
    assert settings.relabel_every == passes_in_steps(0.5, settings, len(data.labels))


def passes_in_steps(count, settings, n_images):
    return setups.quickstart.Epochs(count).in_steps(
        n_images, settings.clusters_per_batch * settings.samples_per_cluster
    )
