import json
import pickle
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from udmlss import EmbeddingModel
from udmlss.backbones import AveragedViews, Backbone, MirrorImage, RotatedImage, load_backbone
from udmlss.models import BatchNormNeck, embedder_from_features, load_model, save_model

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
OWN = Backbone("own", nn.Sequential(nn.Flatten(), nn.Linear(192, 12)), 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def trunk(n_features=12):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, n_features), nn.BatchNorm1d(n_features))


@pytest.fixture
def saved(tmp_path):
    """A folder of a saved model without a backbone."""
    save_model(EmbeddingModel(trunk(), nn.Linear(12, 4)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "embedder",
    [
        nn.Identity(),
        nn.Linear(12, 4, bias=False),
        nn.Linear(12, 4, dtype=torch.float64),
        embedder_from_features(torch.rand(20, 12), np.int64(4)),
        nn.Sequential(nn.Linear(12, 4), BatchNormNeck(4)),
        nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6, eps=0.1), nn.ReLU(), nn.Sequential(nn.Linear(6, 4))),
        nn.Sequential(nn.LayerNorm(12, eps=0.1, bias=False), nn.GELU(approximate="tanh"), nn.Dropout(0.3)),
    ],
)
def test_a_loaded_model_computes_the_same_embeddings(embedder, tmp_path):
    model = EmbeddingModel(trunk(), embedder).train()
    model(IMAGES)  # changes the running statistics
    save_model(model, tmp_path / "model")
    loaded, backbone = load_model(tmp_path / "model", trunk=trunk())
    assert backbone is None
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), model.eval()(IMAGES))
    assert repr(loaded) == repr(model)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in loaded.parameters()] == trainable


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/shufflenet_v2_x0_5", "efficientnet-lite0"])
def test_a_model_with_a_backbone_by_name_needs_only_the_folder(name, tmp_path):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    if name == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    backbone = replace(load_backbone(name, image_size=48, pretrained=False), mean=(0.1, 0.2, 0.3))
    images = torch.rand(2, 3, 48, 48)
    model = EmbeddingModel(backbone.trunk, nn.Linear(backbone.trunk.eval()(images).shape[1], 4)).eval()
    save_model(model, tmp_path / "model", backbone=backbone, recipe={"steps": 3})
    loaded, again = load_model(tmp_path / "model")
    assert torch.equal(loaded(images), model(images))
    assert repr(again) == repr(backbone)
    assert again.trunk is loaded.trunk
    assert json.loads((tmp_path / "model" / "config.json").read_text())["recipe"] == {"steps": 3}


def test_a_model_with_a_backbone_of_the_caller_needs_the_trunk(tmp_path):
    model = EmbeddingModel(OWN.trunk, nn.Linear(12, 4))
    save_model(model, tmp_path / "model", backbone=OWN)
    with pytest.raises(ValueError, match="`trunk` must be passed for the backbone 'own', got None"):
        load_model(tmp_path / "model")
    loaded, backbone = load_model(tmp_path / "model", trunk=nn.Sequential(nn.Flatten(), nn.Linear(192, 12)))
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert repr(backbone) == repr(OWN)


@pytest.mark.parametrize("trunk", [None, "loaded"])
@pytest.mark.parametrize("ignored", ["colors", "orientation", "colors and orientation"])
def test_a_model_whose_backbone_ignores_something_ignores_it_when_loaded(trunk, ignored, tmp_path):
    raw = load_backbone("torchvision/shufflenet_v2_x0_5", image_size=32, pretrained=False)
    images, backbone = torch.rand(2, 3, 32, 32), raw
    for each in ignored.split(" and "):
        backbone = getattr(backbone, f"without_{each}")()
    model = EmbeddingModel(backbone.trunk, nn.Linear(1024, 4)).eval()
    with pytest.raises(ValueError, match="Pass the backbone whose trunk the model has"):
        save_model(model, tmp_path / "model", backbone=raw)
    reordered = raw
    for each in reversed(ignored.split(" and ")):
        reordered = getattr(reordered, f"without_{each}")()
    save_model(model, tmp_path / "model", backbone=reordered)
    other = load_backbone(raw.name, image_size=32, pretrained=False).trunk
    loaded, again = load_model(tmp_path / "model", trunk=other if trunk else None)
    assert torch.equal(loaded(images), model(images))
    assert again.ignores_colors == ("colors" in ignored)
    assert again.ignores_orientation == ("orientation" in ignored)
    assert again.trunk is loaded.trunk
    within = raw.without_orientation().trunk if " and " in ignored else raw.trunk
    flipped = EmbeddingModel(AveragedViews(within, [MirrorImage()]), model.embedder)
    with pytest.raises(ValueError, match=r"must average the views of the backbone, got \['MirrorImage\(\)'.*\], not"):
        save_model(flipped, tmp_path / "flipped", backbone=backbone)


@pytest.mark.parametrize(
    "views", [[nn.Identity(), RotatedImage(2)], [RotatedImage(1)] * 4, [*map(RotatedImage, range(4)), MirrorImage()]]
)
def test_a_backbone_with_views_that_its_folder_cannot_describe_is_an_error(views, tmp_path):
    backbone = replace(OWN, trunk=AveragedViews(OWN.trunk, views))
    assert not backbone.ignores_orientation
    with pytest.raises(ValueError, match="`backbone` must average no other views than those of `without_colors`"):
        save_model(EmbeddingModel(backbone.trunk, nn.Linear(12, 4)), tmp_path / "model", backbone=backbone)


def test_a_folder_of_a_version_without_these_choices_ignores_nothing(tmp_path):
    save_model(EmbeddingModel(OWN.trunk, nn.Linear(12, 4)), tmp_path / "model", backbone=OWN)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["backbone"]["ignores_colors"], config["backbone"]["ignores_orientation"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    _, backbone = load_model(tmp_path / "model", trunk=nn.Sequential(nn.Flatten(), nn.Linear(192, 12)))
    assert not backbone.ignores_colors
    assert not backbone.ignores_orientation


def test_a_model_with_an_embedder_of_the_caller_needs_the_embedder(tmp_path):
    class Embedder(nn.Linear):
        pass

    model = EmbeddingModel(nn.Flatten(), nn.Sequential(Embedder(192, 4)))
    save_model(model, tmp_path / "model")
    with pytest.raises(ValueError, match="`embedder` must be passed for a model whose embedder cannot be built"):
        load_model(tmp_path / "model", trunk=nn.Flatten())
    loaded, _ = load_model(tmp_path / "model", trunk=nn.Flatten(), embedder=nn.Sequential(Embedder(192, 4)))
    assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_an_embedder_without_layers_can_be_passed(tmp_path):
    save_model(EmbeddingModel(nn.Flatten(), nn.Sequential(nn.Sequential())), tmp_path / "model")
    embedder = nn.Sequential()
    loaded, _ = load_model(tmp_path / "model", trunk=nn.Flatten(), embedder=embedder)
    assert loaded.embedder is embedder


def test_a_compiled_model_and_tied_weights_are_saved(tmp_path):
    layer = nn.Linear(192, 192)
    model = EmbeddingModel(nn.Sequential(nn.Flatten(), layer, layer), nn.Linear(192, 4))
    partly = EmbeddingModel(torch.compile(model.trunk), model.embedder)
    for name, each in (("a", torch.compile(model)), ("b", partly)):
        save_model(each, tmp_path / name)
        other = nn.Linear(192, 192)
        loaded, _ = load_model(tmp_path / name, trunk=nn.Sequential(nn.Flatten(), other, other))
        assert torch.equal(loaded(IMAGES), model(IMAGES))
        compiled = torch.compile(nn.Sequential(nn.Flatten(), other, other), backend="eager")
        loaded, _ = load_model(tmp_path / name, trunk=compiled)
        torch.testing.assert_close(loaded.state_dict(), partly.state_dict())


def test_a_half_precision_model_keeps_its_data_type(tmp_path):
    model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 4)).bfloat16()
    save_model(model, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", trunk=nn.Flatten())
    assert loaded.embedder.weight.dtype == torch.bfloat16


def test_saving_replaces_a_saved_model_and_leaves_no_other_files(saved):
    model = EmbeddingModel(trunk(), nn.Linear(12, 4))
    save_model(model, saved)
    assert torch.equal(load_model(saved, trunk=trunk())[0].embedder.weight, model.embedder.weight)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_saved_model_unchanged(saved, error, monkeypatch):
    before = {path: path.read_bytes() for path in saved.iterdir()}

    def interrupted(_weights, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(type(error)):
        save_model(EmbeddingModel(trunk(), nn.Linear(12, 4)), saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "vit"}')
    model = EmbeddingModel(trunk(), nn.Linear(12, 4))
    with pytest.raises(ValueError, match=r"`folder` must be new, empty, or hold a saved model only, got .*me\.jpg"):
        save_model(model, tmp_path / "photos")
    with pytest.raises(ValueError, match=r"got .*config\.json, which another program wrote"):
        save_model(model, tmp_path / "other")
    with pytest.raises(ValueError, match=r"`folder` must be a folder, got the file .*me\.jpg"):
        save_model(model, tmp_path / "photos" / "me.jpg")


@pytest.mark.parametrize("recipe", [{"lr": torch.ones(1)}, {"lr": float("nan")}])
def test_a_recipe_that_is_not_json_is_an_error(recipe, tmp_path):
    with pytest.raises(TypeError, match="`recipe` must consist of values of JSON, got "):
        save_model(EmbeddingModel(trunk(), nn.Linear(12, 4)), tmp_path / "model", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_a_model_must_have_the_trunk_of_the_backbone(tmp_path):
    with pytest.raises(ValueError, match=r"got 5 differences: 2\.weight is not in the model"):
        save_model(EmbeddingModel(trunk(), nn.Linear(12, 4)), tmp_path / "model", backbone=OWN)


def test_a_model_must_have_an_embedder(tmp_path):
    model = nn.Module()
    model.trunk = trunk()
    with pytest.raises(TypeError, match=r"`model\.embedder` must be an nn\.Module, got NoneType"):
        save_model(model, tmp_path / "model")


CONFIG_ERRORS = {
    "{": "which is not JSON",
    "[1]": "which another program wrote",
    '{"library": "other"}': "which another program wrote",
    '{"library": "udmlss", "format": 2}': "must have format 1 or an earlier one, got 2",
    '{"library": "udmlss", "format": 1}': "with KeyError: 'backbone'",
    '{"library": "udmlss", "format": 1, "backbone": {"name": "own"}}': "with KeyError: 'mean'",
    '{"library": "udmlss", "format": 1, "backbone": null, "embedder": {"type": "Eval"}}': "with KeyError: 'Eval'",
}


@pytest.mark.parametrize("text", CONFIG_ERRORS)
def test_a_foreign_or_newer_configuration_is_an_error(text, saved):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=CONFIG_ERRORS[text]):
        load_model(saved, trunk=trunk())


def test_a_truncated_or_pickled_file_is_an_error_and_is_not_run(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    contents = [whole[:length] for length in (0, 5, 100, len(whole) // 2, len(whole) - 1)]
    for content in [*contents, pickle.dumps({"weights": [1, 2]})]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors must be a complete file of safetensors, got .*dam"):
            load_model(saved, trunk=trunk())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_an_error(name, saved):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=rf"must be a folder with .*, which has no {name}"):
        load_model(saved, trunk=trunk())


def test_a_path_that_is_not_a_saved_model_is_an_error(saved):
    with pytest.raises(ValueError, match="elsewhere, which does not exist"):
        load_model(saved / "elsewhere")
    with pytest.raises(ValueError, match=r"got the file .*config\.json"):
        load_model(saved / "config.json")


def test_a_trunk_of_another_architecture_is_an_error(saved):
    for other in (trunk(13), nn.Flatten(), nn.Sequential(*trunk(), nn.Linear(12, 12))):
        with pytest.raises(ValueError, match=r"must fit its trunk and its embedder, got \d differences: trunk\..*"):
            load_model(saved, trunk=other)
    with pytest.raises(ValueError, match="`trunk` must be passed for a model whose trunk cannot be built"):
        load_model(saved)


def test_a_part_that_is_not_a_module_is_an_error(saved, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for wrong in ({"trunk": len}, {"trunk": trunk(), "embedder": nn.Linear}):
        with pytest.raises(TypeError, match=r"must be an nn\.Module, got (builtin_function|the class Linear)"):
            load_model(saved, **wrong)


def test_a_link_to_a_saved_model_stays_a_link(saved):
    link = saved.parent / "latest"
    link.symlink_to(saved)
    model = EmbeddingModel(trunk(), nn.Linear(12, 4))
    save_model(model, link)
    assert link.is_symlink()
    assert torch.equal(load_model(saved, trunk=trunk())[0].embedder.weight, model.embedder.weight)
    assert {path.name for path in saved.parent.iterdir()} == {"model", "latest"}
